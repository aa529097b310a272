//! The offline tool: `quorate utl …`, or the binary called `etcdutl`. It looks at the files of a member
//! that does not run.
//!
//! 1. It changes nothing, unless a command says so by its name.
//! 2. Results go to standard output, everything else to standard error. It ends with 0 if what was asked
//!    for is so, and with 1 otherwise; a command line that makes no sense ends with 2.

mod check;
mod wal;

use clap::{Parser, Subcommand};
use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "etcdutl",
    about = "Looks at the files of a member that does not run",
    disable_version_flag = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Reads the whole tree file and says whether it is sound.
    Check(check::Check),
    /// The write-ahead log.
    #[command(subcommand)]
    Wal(wal::Wal),
}

/// Why a command did not end well.
pub(crate) enum Failure {
    /// What to tell the operator.
    Told(String),
    /// Standard output was closed by whoever read it.
    Closed,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::Closed,
            _ => Failure::Told(error.to_string()),
        }
    }
}

/// The arguments of the tool, the name of the program first, if these are meant for it: the program's
/// name is `etcdutl`, or the first word is `utl`.
pub fn arguments(all: impl IntoIterator<Item = OsString>) -> Option<Vec<OsString>> {
    let mut all = all.into_iter();
    let program = all.next()?;
    let mut rest: Vec<OsString> = all.collect();
    if Path::new(&program).file_name() == Some(OsStr::new("etcdutl")) {
        rest.insert(0, program);
        return Some(rest);
    }
    if rest.first().map(OsString::as_os_str) != Some(OsStr::new("utl")) {
        return None;
    }
    rest[0] = "quorate utl".into();
    Some(rest)
}

/// Runs one command; `arguments` begin with the program's name.
pub fn run(arguments: Vec<OsString>) -> ExitCode {
    let parsed = match Arguments::try_parse_from(arguments) {
        Ok(parsed) => parsed,
        Err(error) => {
            // Nothing can be done about a terminal that is gone.
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    let stdout = io::stdout();
    let mut out = io::BufWriter::new(stdout.lock());
    let done = match parsed.command {
        Command::Check(arguments) => check::run(arguments, &mut out),
        Command::Wal(command) => wal::run(command, &mut out),
    };
    match done.and_then(|()| Ok(out.flush()?)) {
        Ok(()) | Err(Failure::Closed) => ExitCode::SUCCESS,
        Err(Failure::Told(what)) => {
            // What was found before comes first.
            let _ = out.flush();
            eprintln!("{what}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(all: &[&str]) -> Option<Vec<OsString>> {
        arguments(all.iter().map(OsString::from))
    }

    #[test]
    fn the_tool_is_called_by_name_or_by_the_first_word() {
        let called = |all: &[&str]| words(all).map(|w| w[1..].to_vec());
        let wal = Some(vec![OsString::from("wal"), OsString::from("verify")]);
        assert_eq!(called(&["/usr/bin/etcdutl", "wal", "verify"]), wal);
        assert_eq!(called(&["quorate", "utl", "wal", "verify"]), wal);
        assert_eq!(called(&["quorate", "--name", "utl"]), None);
        assert_eq!(called(&["quorate"]), None);
        assert_eq!(called(&[]), None);
    }
}
