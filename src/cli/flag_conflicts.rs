//! Flags of a job that Gristmill has itself: the two would be read as one.

use clap::{Arg, Command};

use super::kinds::Kinds;
use crate::exit::Failure;

/// The commands that take a job's flags.
const TAKE_JOBS: [&[&str]; 2] = [&["run"], &["producer", "submit"]];

/// Refuses a kind with a name that is taken. `whole` is the command line of the program with every role.
///
/// # Errors
/// Says which kind, and which name.
pub(super) fn refuse(kinds: &Kinds, whole: &Command) -> Result<(), Failure> {
    let taken: Vec<_> = TAKE_JOBS.iter().flat_map(|path| handed_down(whole, path)).flat_map(names).collect();
    for kind in kinds.commands() {
        if let Some(name) = clash(kind, &taken) {
            return Err(Failure::usage(format_args!(
                "the job `{}` has {name}, which Gristmill has itself (hint: rename it)",
                kind.get_name()
            )));
        }
    }
    Ok(())
}

/// The flags that this command and those above it give to its subcommands.
fn handed_down<'a>(whole: &'a Command, path: &[&str]) -> Vec<&'a Arg> {
    let mut flags = Vec::new();
    let mut here = Some(whole);
    let mut below = path.iter();
    while let Some(command) = here {
        flags.extend(command.get_arguments().filter(|arg| arg.is_global_set()));
        here = below.next().and_then(|name| command.find_subcommand(name));
    }
    flags
}

/// The first name of the command's flags, or of its subcommands', that is taken.
fn clash(command: &Command, taken: &[String]) -> Option<String> {
    // Clap gives this one to each command, but to those that want none.
    let help = Arg::new("help").short('h').long("help");
    let helps = if command.is_disable_help_flag_set() { Vec::new() } else { names(&help) };
    let mut own = command.get_arguments().flat_map(names);
    own.find(|name| taken.contains(name) || helps.contains(name))
        .or_else(|| command.get_subcommands().find_map(|below| clash(below, taken)))
}

/// All names of a flag, as they are told: what is typed, and what clap keeps its value under.
fn names(arg: &Arg) -> Vec<String> {
    let longs = arg.get_long().into_iter().chain(arg.get_all_aliases().unwrap_or_default());
    let shorts = arg.get_short().into_iter().chain(arg.get_all_short_aliases().unwrap_or_default());
    let longs = longs.map(|long| format!("a flag --{long}"));
    let shorts = shorts.map(|short| format!("a flag -{short}"));
    longs.chain(shorts).chain([format!("a parameter with the id {}", arg.get_id())]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{App, Role, app::KindArgs};

    fn refused(kinds: Vec<Command>) -> Option<String> {
        let kind =
            |command| KindArgs { command, parse: |_| Err(clap::Error::new(clap::error::ErrorKind::Io)) };
        let kinds = Kinds(kinds.into_iter().map(kind).collect());
        let whole = super::super::command(Role::All, &kinds, "1");
        refuse(&kinds, &whole).err().map(|failure| failure.to_string())
    }

    #[test]
    fn a_flag_that_gristmill_has_is_refused_by_each_of_its_names() {
        let long = |name: &'static str| Arg::new(name).long(name);
        for (arg, name) in [
            (long("json"), "a flag --json"),     // of `run` and `submit`
            (long("state"), "a flag --state"),   // of `run` and `producer`
            (long("wait"), "a flag --wait"),     // of `submit` alone
            (long("log"), "a flag --log"),       // of the program
            (long("config"), "a flag --config"), // likewise
            (long("help"), "a flag --help"),     // of clap
            (Arg::new("lots").long("lots").alias("slots"), "a flag --slots"),
            (Arg::new("height").short('h'), "a flag -h"),
            (Arg::new("volume").short('x').short_alias('v'), "a flag -v"),
            (Arg::new("tls_ca").long("authority"), "a parameter with the id tls_ca"),
            (Arg::new("lane"), "a parameter with the id lane"),
        ] {
            let told = format!("the job `odd` has {name}, which Gristmill has itself (hint: rename it)");
            let odd = Command::new("odd").arg(arg);
            assert_eq!(refused(vec![Command::new("even"), odd.clone()]), Some(told.clone()));
            let below = Command::new("odd").subcommand(odd);
            assert_eq!(refused(vec![below]), Some(told), "below");
        }
    }

    #[test]
    fn what_reaches_no_job_is_free() {
        let own_help = Arg::new("help").short('h').long("help");
        let odd = Command::new("odd").disable_help_flag(true).arg(own_help);
        // The program's own version, and flags of other commands.
        let odd = odd.args(["version", "reason", "grace", "missing"].map(|name| Arg::new(name).long(name)));
        assert_eq!(refused(vec![odd]), None);
    }

    #[test]
    fn the_built_in_kinds_have_no_such_flag() {
        let (kinds, _) = App::with_built_in_jobs().into_parts().unwrap();
        assert_eq!(refused(kinds.into_iter().map(|kind| kind.command).collect()), None);
    }
}
