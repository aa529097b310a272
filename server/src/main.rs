//! The `quorate` binary: reads the settings, starts a member, waits for a signal, stops it. Called as
//! `etcdutl`, or with `utl` as the first word, it is the offline tool instead.

use quorate::config::{self, Request};
use quorate::{logging, member, utl};
use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(arguments) = utl::arguments(std::env::args_os()) {
        return utl::run(arguments);
    }
    let request = match config::parse(std::env::args_os().skip(1), std::env::vars_os()) {
        Ok(request) => request,
        Err(error) => {
            eprintln!("quorate: {}", error.message);
            return ExitCode::from(error.exit as u8);
        }
    };
    let config = match request {
        Request::Print(text) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Request::Run(config) => *config,
    };
    let installed = logging::Lines::open(&config)
        .map_err(|e| e.to_string())
        .and_then(logging::Lines::install);
    if let Err(error) = installed {
        eprintln!("quorate: {error}");
        return ExitCode::FAILURE;
    }
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    match member::run(config) {
        Ok(Some(signal)) => member::end_by_signal(signal),
        Ok(None) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %error, "failed to start or run the member");
            eprintln!("quorate: {error}");
            ExitCode::FAILURE
        }
    }
}
