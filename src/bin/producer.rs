//! Splits jobs and publishes their tasks.

use std::process::ExitCode;

use gristmill::{App, Role};

fn main() -> ExitCode {
    App::with_built_in_jobs().build(env!("GRISTMILL_BUILD")).main_as(Role::Producer)
}
