//! Tests of commands of a process that dies: this test binary, started again as a worker.

mod find;

use std::{
    env,
    os::unix::process::ExitStatusExt as _,
    process::{Child, Command as Std, Stdio},
    time::{Duration, Instant},
};

use find::{children_of, wait_for, wait_gone, wait_running};
use gristmill_process::{Command, RunCommand};
use gristmill_shared::{JobId, StopSignal, TaskContext, TaskIndex};

/// The environment variable with the script that the process runs.
const SCRIPT_VARIABLE: &str = "LEASH_TEST_SCRIPT";

/// Runs the script of the environment until killed, if this process is the child.
fn run_as_child() {
    let Some(script) = env::var_os(SCRIPT_VARIABLE) else { return };
    let cx = TaskContext::new(JobId::generate(), TaskIndex(0), 0, StopSignal::new());
    drop(cx.run(Command::new("sh").arg("-c").arg(script)));
    panic!("the command ended before this process was killed");
}

/// Starts this test binary as a process that runs a script in the test of this name.
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

/// Waits until a process has ended. It may be a zombie that its parent has not reaped.
fn wait_ended(pid: u32) {
    let is_ended = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, fields)| fields.starts_with('Z'))
    };
    wait_for(format!("the end of {pid}"), is_ended);
}

#[test]
fn killed_process_leaves_no_command() {
    run_as_child();
    let process = start("killed_process_leaves_no_command", "sleep 60.4211 & sleep 60.4212");
    wait_running(&["60.4211", "60.4212"]);
    kill(process);
    wait_gone("60.4211");
    wait_gone("60.4212");
}

#[test]
fn stubborn_command_is_killed() {
    run_as_child();
    let script = "trap '' TERM; sleep 60.4213";
    let process = start("stubborn_command_is_killed", script);
    wait_running(&["60.4213"]);
    let killed = Instant::now();
    kill(process);
    wait_gone("60.4213");
    assert!(killed.elapsed() >= Duration::from_secs(1), "SIGTERM was not ignored");
}

/// The next command starts another leash, which also ends commands that were running already.
#[test]
fn killed_leash_is_replaced() {
    const TEST_NAME: &str = "killed_leash_is_replaced";
    if env::var_os(SCRIPT_VARIABLE).is_some() {
        let first = std::thread::spawn(run_as_child);
        wait_running(&["60.4214"]);
        let children = children_of(std::process::id());
        let shell = |pid: &u32| {
            std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap().contains("gristmill-leash")
        };
        let leash = children.into_iter().find(shell).unwrap();
        assert!(Std::new("kill").args(["-9", &leash.to_string()]).status().unwrap().success());
        // Until then a line that is written to it is lost with it.
        wait_ended(leash);
        let cx = TaskContext::new(JobId::generate(), TaskIndex(0), 0, StopSignal::new());
        drop(cx.run(Command::new("sleep").arg("60.4215")));
        first.join().unwrap();
    }
    let process = start(TEST_NAME, "sleep 60.4214");
    wait_running(&["60.4214", "60.4215"]);
    kill(process);
    wait_gone("60.4214");
    wait_gone("60.4215");
}

#[test]
fn paused_process_keeps_its_command() {
    run_as_child();
    let process = start("paused_process_keeps_its_command", "sleep 60.4216");
    wait_running(&["60.4216"]);
    let signal = |name: &str| Std::new("kill").args([name, &process.id().to_string()]).status().unwrap();
    assert!(signal("-STOP").success());
    // Longer than a leash takes to end the remaining groups.
    std::thread::park_timeout(Duration::from_millis(1500));
    assert!(find::is_running("60.4216"));
    assert!(signal("-CONT").success());
    kill(process);
    wait_gone("60.4216");
}

/// The process is in no group that the leash knows, like a command that was started in the last
/// moment.
#[test]
fn unknown_group_is_killed() {
    run_as_child();
    let script = "setsid sleep 60.4216 & exec sleep 60.4217";
    let process = start("unknown_group_is_killed", script);
    wait_running(&["60.4216", "60.4217"]);
    kill(process);
    wait_gone("60.4216");
    wait_gone("60.4217");
}
