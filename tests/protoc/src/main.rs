//! Stands in for `protoc` where a build script wants to run it.
//!
//! It takes the arguments `prost-build` gives and writes a `FileDescriptorSet`; anything else is
//! refused, so that no option is silently without effect.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// The part of protoc's command line that is understood.
#[derive(Default)]
struct Arguments {
    includes: Vec<PathBuf>,
    files: Vec<PathBuf>,
    output: Option<PathBuf>,
    imports: bool,
    source_info: bool,
}

fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Arguments, String> {
    let mut parsed = Arguments::default();
    while let Some(arg) = args.next() {
        let mut next = |what: &str| args.next().ok_or(format!("{what} needs a value"));
        match arg.to_str() {
            Some("--include_imports") => parsed.imports = true,
            Some("--include_source_info") => parsed.source_info = true,
            Some("-I" | "--proto_path") => parsed.includes.push(next("-I")?.into()),
            Some("-o" | "--descriptor_set_out") => parsed.output = Some(next("-o")?.into()),
            // Long accepted by every protoc as the default.
            Some("--experimental_allow_proto3_optional") => {}
            Some(option) if option.starts_with('-') => {
                return Err(format!("option {option} is not supported"));
            }
            _ => parsed.files.push(arg.into()),
        }
    }
    Ok(parsed)
}

fn run() -> Result<(), String> {
    let args = parse(std::env::args_os().skip(1))?;
    let output = args.output.ok_or("no output file (-o)")?;
    let set = protox::Compiler::new(args.includes)
        .map_err(|e| e.to_string())?
        .include_imports(args.imports)
        .include_source_info(args.source_info)
        .open_files(args.files)
        .map_err(|e| format!("{e:?}"))?
        .encode_file_descriptor_set();
    std::fs::write(&output, set).map_err(|e| format!("{}: {e}", output.display()))
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("protoc stand-in: {message}");
            ExitCode::FAILURE
        }
    }
}
