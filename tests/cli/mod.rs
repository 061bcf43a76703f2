//! The command line: settings, help, errors, and what each command prints.

mod bad_input;
mod conclusion;
mod config;
mod doctor;
mod documented_commands;
mod help;
mod outputs;
mod pages;
mod report;
mod run;
mod snapshots;
