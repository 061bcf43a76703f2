//! `completions` and `man`: shell completions and manual pages, generated from the command line.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::{ArgMatches, Args, Command, FromArgMatches as _};
use clap_complete::{Shell, generate, generate_to};

use super::{CommandResult, Context, check_written, command, help, program_name};
use crate::{Exit, Role, exit::Failure};

/// The name of the program with every role. Next to it, each role has a program of its own.
const WHOLE_PROGRAM: &str = "gristmill";
/// The names of the programs with one role.
const ROLE_PROGRAMS: [(&str, Role); 3] =
    [("producer", Role::Producer), ("worker", Role::Worker), ("sink", Role::Sink)];

/// Print the completions of a shell, or write them to files
///
/// The files cover every program.
#[derive(Debug, Args)]
struct CompletionsFlags {
    /// The shell
    shell: Shell,
    /// Write the files to this directory, one for each program
    dir: Option<PathBuf>,
}

/// Print the manual page, or write all of them to files
///
/// The files cover every program and command.
#[derive(Debug, Args)]
struct ManualFlags {
    /// Write the pages to this directory, one for each command
    dir: Option<PathBuf>,
}

/// Builds the two commands.
pub(super) fn commands() -> [Command; 2] {
    let completions = CompletionsFlags::augment_args(Command::new("completions"));
    let completions = completions.after_help("Examples:\n  source <(gristmill completions bash)");
    [completions, ManualFlags::augment_args(Command::new("man"))]
}

pub(super) fn write_completions(context: &Context, matches: &ArgMatches) -> CommandResult {
    let CompletionsFlags { shell, dir } =
        CompletionsFlags::from_arg_matches(matches).map_err(Failure::usage)?;
    let mut programs = programs(context);
    let Some(dir) = dir else {
        let (name, mut program) = programs.swap_remove(0);
        let mut script = Vec::new();
        generate(shell, &mut program, name, &mut script);
        return write_stdout(&script);
    };
    create_dir(&dir)?;
    for (name, mut program) in programs {
        generate_to(shell, &mut program, name, &dir).map_err(|error| write_failure(&dir, &error))?;
    }
    Ok(Exit::Ok)
}

pub(super) fn write_manual(context: &Context, matches: &ArgMatches) -> CommandResult {
    let ManualFlags { dir } = ManualFlags::from_arg_matches(matches).map_err(Failure::usage)?;
    let mut programs = programs(context);
    let Some(dir) = dir else {
        let (_, program) = programs.swap_remove(0);
        let mut page = Vec::new();
        clap_mangen::Man::new(program)
            .render(&mut page)
            .map_err(|error| Failure::new(Exit::Bug, format!("no manual page: {error}")))?;
        return write_stdout(&page);
    };
    create_dir(&dir)?;
    for (_, program) in programs {
        clap_mangen::generate_to(program, &dir).map_err(|error| write_failure(&dir, &error))?;
    }
    Ok(Exit::Ok)
}

/// Returns this program under its own name first, then the programs of the roles, if this is
/// [`WHOLE_PROGRAM`].
fn programs(context: &Context) -> Vec<(String, Command)> {
    let own = program_name();
    let roles = ROLE_PROGRAMS
        .into_iter()
        .filter(|_| own == WHOLE_PROGRAM)
        .map(|(name, role)| (name.to_owned(), role));
    let named = [(own.clone(), Role::All)].into_iter().chain(roles);
    named
        .map(|(name, role)| {
            let program =
                help::show_all_flags(command(role, &context.kinds, &context.transports, context.version));
            let program = program.name(&name).bin_name(&name);
            (name, program)
        })
        .collect()
}

fn write_stdout(text: &[u8]) -> CommandResult {
    check_written(io::Write::write_all(&mut io::stdout().lock(), text))?;
    Ok(Exit::Ok)
}

fn create_dir(dir: &Path) -> Result<(), Failure> {
    fs::create_dir_all(dir).map_err(|error| write_failure(dir, &error))
}

fn write_failure(dir: &Path, error: &io::Error) -> Failure {
    Failure::usage(format_args!("cannot write to {}: {error}", dir.display()))
}
