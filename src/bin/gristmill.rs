//! Every role in one program.

use std::process::ExitCode;

fn main() -> ExitCode {
    gristmill::App::with_built_in_jobs().build(env!("GRISTMILL_BUILD")).main()
}
