//! Commands of a process that dies: this test binary, started again as a worker.

mod find;

use std::{
    env,
    os::unix::process::ExitStatusExt as _,
    process::{Child, Command as Std, Stdio},
    time::{Duration, Instant},
};

use find::{children_of, until_gone, until_running};
use gristmill_process::{Command, RunCommand};
use gristmill_shared::{JobId, StopSignal, TaskContext, TaskIndex};

/// The script that the process runs, and what it does then.
const SCRIPT_VARIABLE: &str = "LEASH_TEST_SCRIPT";

/// Runs the script of the environment, if this is the process to die.
fn die_if_told() {
    let Some(script) = env::var_os(SCRIPT_VARIABLE) else { return };
    let cx = TaskContext::new(JobId::generate(), TaskIndex(0), 0, StopSignal::new());
    drop(cx.run(Command::new("sh").arg("-c").arg(script)));
    panic!("the command ended before this process was killed");
}

/// This test binary as a process that runs a script in the test of this name.
fn start(test: &str, script: &str) -> Child {
    let tests = env::current_exe().unwrap();
    let mut command = Std::new(tests);
    command.args(["--exact", test]).env(SCRIPT_VARIABLE, script).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

fn kill(mut process: Child) {
    process.kill().unwrap();
    assert_eq!(process.wait().unwrap().signal(), Some(9));
}

#[test]
fn killed_process_leaves_no_command() {
    die_if_told();
    let process = start("killed_process_leaves_no_command", "sleep 60.4211 & sleep 60.4212");
    until_running(&["60.4211", "60.4212"]);
    kill(process);
    until_gone("60.4211");
    until_gone("60.4212");
}

#[test]
fn killed_process_leaves_no_stubborn_command() {
    die_if_told();
    let script = "trap '' TERM; sleep 60.4213";
    let process = start("killed_process_leaves_no_stubborn_command", script);
    until_running(&["60.4213"]);
    let killed = Instant::now();
    kill(process);
    until_gone("60.4213");
    assert!(killed.elapsed() >= Duration::from_secs(1), "SIGTERM was not ignored");
}

/// The next command starts another leash, which also ends the command that runs already.
#[test]
fn killed_leash_is_replaced() {
    const NAME: &str = "killed_leash_is_replaced";
    if env::var_os(SCRIPT_VARIABLE).is_some() {
        let first = std::thread::spawn(die_if_told);
        until_running(&["60.4214"]);
        let children = children_of(std::process::id());
        let shell = |pid: &u32| {
            std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap().contains("gristmill-leash")
        };
        let leash = children.into_iter().find(shell).unwrap();
        assert!(Std::new("kill").args(["-9", &leash.to_string()]).status().unwrap().success());
        let cx = TaskContext::new(JobId::generate(), TaskIndex(0), 0, StopSignal::new());
        drop(cx.run(Command::new("sleep").arg("60.4215")));
        first.join().unwrap();
    }
    let process = start(NAME, "sleep 60.4214");
    until_running(&["60.4214", "60.4215"]);
    kill(process);
    until_gone("60.4214");
    until_gone("60.4215");
}

#[test]
fn paused_process_keeps_its_command() {
    die_if_told();
    let process = start("paused_process_keeps_its_command", "sleep 60.4216");
    until_running(&["60.4216"]);
    let signal = |name: &str| Std::new("kill").args([name, &process.id().to_string()]).status().unwrap();
    assert!(signal("-STOP").success());
    // Longer than a leash takes to end what is left.
    std::thread::park_timeout(Duration::from_millis(1500));
    assert!(find::is_running("60.4216"));
    assert!(signal("-CONT").success());
    kill(process);
    until_gone("60.4216");
}

/// Such a process is in no group that the leash knows, as a command that was started in the last
/// moment.
#[test]
fn killed_process_leaves_no_unknown_group() {
    die_if_told();
    let script = "setsid sleep 60.4216 & exec sleep 60.4217";
    let process = start("killed_process_leaves_no_unknown_group", script);
    until_running(&["60.4216", "60.4217"]);
    kill(process);
    until_gone("60.4216");
    until_gone("60.4217");
}
