//! Detection of job flags that conflict with flags of Gristmill itself.

use clap::{Arg, Command};

use super::kinds::Kinds;
use crate::exit::Failure;

/// The commands that take a job's flags.
const JOB_COMMANDS: [&[&str]; 2] = [&["run"], &["producer", "submit"]];

/// Refuses kinds whose flags conflict with Gristmill's. `whole` is the command line of the program
/// with every role.
///
/// # Errors
/// A usage error that names the kind and the conflicting flag.
pub(super) fn refuse_conflicts(kinds: &Kinds, whole: &Command) -> Result<(), Failure> {
    let taken: Vec<_> =
        JOB_COMMANDS.iter().flat_map(|path| inherited_flags(whole, path)).flat_map(flag_names).collect();
    for kind in kinds.commands() {
        if let Some(name) = find_conflict(kind, &taken) {
            return Err(Failure::usage(format_args!(
                "the job `{}` has {name}, which Gristmill has itself (hint: rename it)",
                kind.get_name()
            )));
        }
    }
    Ok(())
}

/// Returns the flags that the command at `path` and its ancestors pass on to subcommands.
fn inherited_flags<'a>(whole: &'a Command, path: &[&str]) -> Vec<&'a Arg> {
    let mut flags = Vec::new();
    let mut here = Some(whole);
    let mut below = path.iter();
    while let Some(command) = here {
        flags.extend(command.get_arguments().filter(|arg| arg.is_global_set()));
        here = below.next().and_then(|name| command.find_subcommand(name));
    }
    flags
}

/// Returns the first conflicting name of a flag of the command or its subcommands.
fn find_conflict(command: &Command, taken: &[String]) -> Option<String> {
    // Clap adds this flag to every command that does not disable it.
    let help = Arg::new("help").short('h').long("help");
    let helps = if command.is_disable_help_flag_set() { Vec::new() } else { flag_names(&help) };
    let mut own = command.get_arguments().flat_map(flag_names);
    own.find(|name| taken.contains(name) || helps.contains(name))
        .or_else(|| command.get_subcommands().find_map(|below| find_conflict(below, taken)))
}

/// Returns all names of a flag as error messages show them: long and short names, aliases, and the
/// id under which clap stores its value.
fn flag_names(arg: &Arg) -> Vec<String> {
    let longs = arg.get_long().into_iter().chain(arg.get_all_aliases().unwrap_or_default());
    let shorts = arg.get_short().into_iter().chain(arg.get_all_short_aliases().unwrap_or_default());
    let longs = longs.map(|long| format!("a flag --{long}"));
    let shorts = shorts.map(|short| format!("a flag -{short}"));
    longs.chain(shorts).chain([format!("a parameter with the id {}", arg.get_id())]).collect()
}

#[cfg(test)]
mod tests {
    use gristmill_shared::TransportRegistry;

    use super::*;
    use crate::{App, Role, cli::kinds::KindArgs};

    fn refused(kinds: Vec<Command>) -> Option<String> {
        let kind =
            |command| KindArgs { command, parse: |_| Err(clap::Error::new(clap::error::ErrorKind::Io)) };
        let kinds = Kinds(kinds.into_iter().map(kind).collect());
        let whole = super::super::command(Role::All, &kinds, &TransportRegistry::default(), "1");
        refuse_conflicts(&kinds, &whole).err().map(|failure| failure.to_string())
    }

    #[test]
    fn each_name_of_own_flag_conflicts() {
        let long = |name: &'static str| Arg::new(name).long(name);
        for (arg, name) in [
            (long("json"), "a flag --json"),     // of `run` and `submit`
            (long("state"), "a flag --state"),   // of `run` and `producer`
            (long("wait"), "a flag --wait"),     // of `submit` alone
            (long("log"), "a flag --log"),       // of the program
            (long("config"), "a flag --config"), // of the program
            (long("help"), "a flag --help"),     // of clap
            (Arg::new("lots").long("lots").alias("slots"), "a flag --slots"),
            (Arg::new("height").short('h'), "a flag -h"),
            (Arg::new("volume").short('x').short_alias('v'), "a flag -v"),
            (Arg::new("tls_ca").long("authority"), "a parameter with the id tls_ca"),
            (Arg::new("lane"), "a parameter with the id lane"),
        ] {
            let message = format!("the job `odd` has {name}, which Gristmill has itself (hint: rename it)");
            let odd = Command::new("odd").arg(arg);
            assert_eq!(refused(vec![Command::new("even"), odd.clone()]), Some(message.clone()));
            let below = Command::new("odd").subcommand(odd);
            assert_eq!(refused(vec![below]), Some(message), "below");
        }
    }

    #[test]
    fn other_commands_flags_are_free() {
        let own_help = Arg::new("help").short('h').long("help");
        let odd = Command::new("odd").disable_help_flag(true).arg(own_help);
        // The program's own version, and flags of other commands.
        let odd = odd.args(["version", "reason", "grace", "missing"].map(|name| Arg::new(name).long(name)));
        assert_eq!(refused(vec![odd]), None);
    }

    #[test]
    fn built_in_kinds_do_not_conflict() {
        let (kinds, ..) = App::with_built_in_jobs().0.into_parts().unwrap();
        assert_eq!(refused(kinds.into_iter().map(|kind| kind.command).collect()), None);
    }
}
