//! The layout of `-h` and `--help`: a kind's own flags come first, shared ones under headings, and
//! `-h` fits one screen.

use std::collections::BTreeMap;

use clap::{Arg, Args as _, Command, builder::Resettable};

use super::{
    config::ConfigFlags,
    flags::{BrokerFlags, LaneFlags, LogFlags, SlotFlags, SubmitFlags},
    kinds,
    metrics::MetricsFlags,
    otlp,
    state_dir::StateFlags,
};

/// The width of the lists of flags in `-h`, in columns.
const LIST_COLUMNS: usize = 78;
/// The width of their titles, in columns.
const TITLE_COLUMNS: usize = 10;
/// The heading of flags about sending a job and waiting for it.
const JOB_HEADING: &str = "Job options";
/// The end of every heading.
const HEADING_END: &str = " options";
/// The maximum number of flags under one heading; the places of the next heading begin there.
const HEADING_PLACES: usize = 100;

/// The heading of each shared flag and its place among all of them, by the flag's id.
type FlagPlaces = BTreeMap<String, (&'static str, usize)>;

/// Arranges the help of a command and of its subcommands.
///
/// A flag without a heading belongs to the command alone, or to the kind of job: it comes first,
/// and `-h` explains it. Every other flag has a heading, and `-h` only names it, so that `-h` fits
/// one screen:
///
/// - a flag that several commands share has the heading of its [group](shared_flags);
/// - any other flag of a command that takes kinds has [`JOB_HEADING`];
/// - any other flag of a command with other subcommands has a heading with the command's name.
pub(super) fn arrange(command: Command) -> Command {
    let mut places = FlagPlaces::new();
    for ((heading, group), number) in shared_flags().into_iter().zip(1..) {
        for (arg, place) in group.get_arguments().zip(HEADING_PLACES * number..) {
            places.insert(arg.get_id().to_string(), (heading, place));
        }
    }
    arrange_below(command, &places, &[])
}

/// Returns the shared flags by their headings, in the order in which `-h` names them.
fn shared_flags() -> [(&'static str, Command); 4] {
    let none = || Command::new("group");
    let process = StateFlags::augment_args(SlotFlags::augment_args(none()));
    let process = ConfigFlags::augment_args(otlp::add_local_flag(MetricsFlags::augment_args(process)));
    [
        (JOB_HEADING, SubmitFlags::augment_args(none())),
        ("Broker options", LaneFlags::augment_args(BrokerFlags::augment_args(none()))),
        ("Process options", process),
        ("Logging options", LogFlags::augment_args(none())),
    ]
}

/// Shows every flag of a command for a manual page, as if `-h` were not shortened.
pub(super) fn show_all_flags(command: Command) -> Command {
    let text = command.get_after_long_help().filter(|text| !text.to_string().is_empty()).cloned();
    let command = command.after_help(Resettable::from(text)).after_long_help(None::<&str>);
    command.mut_args(|arg| arg.hide_short_help(false)).mut_subcommands(show_all_flags)
}

/// Arranges a command and its subcommands. `inherited` are the global flags of the ancestors.
fn arrange_below(command: Command, places: &FlagPlaces, inherited: &[Arg]) -> Command {
    // `help` is a command of a whole program only: elsewhere it costs a line, and `--help` says the
    // same.
    let is_whole = command.find_subcommand("sink").is_some();
    let command = command.disable_help_subcommand(!is_whole);
    let takes_kinds = command.get_subcommand_value_name() == Some(kinds::VALUE_NAME);
    let own_heading = match command.get_name() {
        _ if takes_kinds => Some(JOB_HEADING.to_owned()),
        name if command.has_subcommands() => Some(command_heading(name)),
        _ => None,
    };
    let mut own_places = 0..;
    let command = command.mut_args(|arg| match (places.get(arg.get_id().as_str()), &own_heading) {
        (Some((heading, place)), _) => place_flag(arg, (*heading).to_owned(), *place),
        (None, Some(heading)) => place_flag(arg, heading.clone(), own_places.next().unwrap_or_default()),
        (None, None) => arg.help_heading(None::<&str>),
    });
    let own = command.get_arguments().cloned();
    let all: Vec<Arg> = own.chain(inherited.iter().cloned()).collect();
    let globals: Vec<Arg> = all.iter().filter(|arg| arg.is_global_set()).cloned().collect();
    let command = command.mut_subcommands(|below| {
        if takes_kinds { append_flag_list(below, &globals) } else { arrange_below(below, places, &globals) }
    });
    // Only --help shows examples.
    let long = command.get_after_long_help().or_else(|| command.get_after_help()).cloned();
    let command = append_flag_list(command.after_help(None::<&str>), &all);
    match long {
        Some(long) => command.after_long_help(long),
        None => command.after_long_help(""),
    }
}

/// Sets the heading and the place of a flag, and hides it from the explanations of `-h`.
fn place_flag(arg: Arg, heading: String, place: usize) -> Arg {
    arg.help_heading(heading).display_order(place).hide_short_help(true)
}

/// Returns the heading of a command's own flags.
fn command_heading(command: &str) -> String {
    let (first, rest) = command.split_at_checked(1).unwrap_or_default();
    format!("{}{rest}{HEADING_END}", first.to_uppercase())
}

/// Appends the names of the flags that `-h` does not explain to its text. A kind's own text stays
/// before them.
fn append_flag_list(command: Command, flags: &[Arg]) -> Command {
    let Some(list) = flag_list(flags) else { return command };
    let long = command.get_after_long_help().or_else(|| command.get_after_help()).cloned();
    let short = match command.get_after_help() {
        Some(text) => format!("{text}\n\n{list}"),
        None => list,
    };
    let command = command.after_help(short);
    command.after_long_help(long.unwrap_or_default())
}

/// Returns the names of the flags that `-h` does not explain, a line for each heading, or None if
/// there are none.
fn flag_list(flags: &[Arg]) -> Option<String> {
    let mut listed: Vec<_> =
        flags.iter().filter(|arg| arg.is_hide_short_help_set() && !arg.is_hide_set()).collect();
    listed.sort_by_key(|arg| arg.get_display_order());
    let mut lines = vec!["More options, explained by --help:".to_owned()];
    let mut heading = None;
    for arg in listed {
        let Some(name) = arg.get_long() else { continue };
        let full = lines.last().is_none_or(|line| line.len() + name.len() + 3 > LIST_COLUMNS);
        if heading != arg.get_help_heading() {
            heading = arg.get_help_heading();
            let title = heading.unwrap_or_default().trim_end_matches(HEADING_END);
            lines.push(format!("{:TITLE_COLUMNS$}", format!("  {title}:")));
        } else if full {
            lines.push(" ".repeat(TITLE_COLUMNS));
        }
        if let Some(line) = lines.last_mut() {
            line.push_str(" --");
            line.push_str(name);
        }
    }
    (lines.len() > 1).then(|| lines.join("\n"))
}
