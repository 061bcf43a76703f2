//! `completions` and `man`: what the command line says of itself, for shells and for readers.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::{ArgMatches, Args, Command, FromArgMatches as _};
use clap_complete::{Shell, generate, generate_to};

use super::{Context, Outcome, command, help, program_name, written};
use crate::{Exit, Role, exit::Failure};

/// The name under which every role is in one program, and beside which each has one of its own.
const WHOLE: &str = "gristmill";
/// What those are called.
const ROLES: [(&str, Role); 3] =
    [("producer", Role::Producer), ("worker", Role::Worker), ("sink", Role::Sink)];

/// Print the completions of a shell, or write them to files
///
/// The files are those of every program.
#[derive(Debug, Args)]
struct Completions {
    /// The shell
    shell: Shell,
    /// Write the files here instead, one for each program
    dir: Option<PathBuf>,
}

/// Print the manual page, or write all of them to files
///
/// The files are those of every program and command.
#[derive(Debug, Args)]
struct Manual {
    /// Write the pages here instead, one for each command
    dir: Option<PathBuf>,
}

/// The two commands.
pub(super) fn commands() -> [Command; 2] {
    let completions = Completions::augment_args(Command::new("completions"));
    let completions = completions.after_help("Examples:\n  source <(gristmill completions bash)");
    [completions, Manual::augment_args(Command::new("man"))]
}

pub(super) fn completions(context: &Context, matches: &ArgMatches) -> Outcome {
    let Completions { shell, dir } = Completions::from_arg_matches(matches).map_err(Failure::usage)?;
    let mut programs = programs(context);
    let Some(dir) = dir else {
        let (name, mut program) = programs.swap_remove(0);
        let mut script = Vec::new();
        generate(shell, &mut program, name, &mut script);
        return on_stdout(&script);
    };
    make(&dir)?;
    for (name, mut program) in programs {
        generate_to(shell, &mut program, name, &dir).map_err(|error| cannot(&dir, &error))?;
    }
    Ok(Exit::Ok)
}

pub(super) fn manual(context: &Context, matches: &ArgMatches) -> Outcome {
    let Manual { dir } = Manual::from_arg_matches(matches).map_err(Failure::usage)?;
    let mut programs = programs(context);
    let Some(dir) = dir else {
        let (_, program) = programs.swap_remove(0);
        let mut page = Vec::new();
        clap_mangen::Man::new(program)
            .render(&mut page)
            .map_err(|error| Failure::new(Exit::Bug, format!("no manual page: {error}")))?;
        return on_stdout(&page);
    };
    make(&dir)?;
    for (_, program) in programs {
        clap_mangen::generate_to(program, &dir).map_err(|error| cannot(&dir, &error))?;
    }
    Ok(Exit::Ok)
}

/// This program under its own name, first; and those of the roles, if it is the one that they stand beside.
fn programs(context: &Context) -> Vec<(String, Command)> {
    let own = program_name();
    let roles = ROLES.into_iter().filter(|_| own == WHOLE).map(|(name, role)| (name.to_owned(), role));
    let named = [(own.clone(), Role::All)].into_iter().chain(roles);
    named
        .map(|(name, role)| {
            let program = help::in_full(command(role, &context.kinds, context.version));
            let program = program.name(&name).bin_name(&name);
            (name, program)
        })
        .collect()
}

fn on_stdout(text: &[u8]) -> Outcome {
    written(io::Write::write_all(&mut io::stdout().lock(), text))?;
    Ok(Exit::Ok)
}

fn make(dir: &Path) -> Result<(), Failure> {
    fs::create_dir_all(dir).map_err(|error| cannot(dir, &error))
}

fn cannot(dir: &Path, error: &io::Error) -> Failure {
    Failure::usage(format_args!("cannot write to {}: {error}", dir.display()))
}
