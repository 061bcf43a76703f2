//! Tests of commands of a task, with real child processes.

mod find;

use std::{
    future::Future,
    time::{Duration, Instant},
};

use find::{is_running, wait_gone, wait_running};
use gristmill_process::{Command, CommandOutput, KILL_DELAY, RunCommand, STDERR_TAIL_BYTES};
use gristmill_shared::{FailureKind, JobId, StopSignal, TaskContext, TaskError, TaskIndex};

fn context(stop: &StopSignal) -> TaskContext {
    TaskContext::new(JobId::generate(), TaskIndex(0), 0, stop.clone())
}

fn run(command: Command) -> Result<CommandOutput, TaskError> {
    context(&StopSignal::new()).run(command)
}

fn shell(script: &str) -> Command {
    Command::new("sh").args(["-c", script])
}

fn failure<T: std::fmt::Debug>(result: Result<T, TaskError>) -> String {
    match result.unwrap_err().into_kind() {
        FailureKind::Failed(reason) => reason,
        other => panic!("{other:?}"),
    }
}

/// Runs the command on a thread, and stops the job as soon as `when` resolves.
fn stop_when(command: Command, when: impl FnOnce()) -> (FailureKind, Duration) {
    let stop = StopSignal::new();
    let cx = context(&stop);
    let running = std::thread::spawn(move || cx.run(command));
    when();
    let stopped_at = Instant::now();
    stop.stop();
    let trouble = running.join().unwrap().unwrap_err().into_kind();
    (trouble, stopped_at.elapsed())
}

#[test]
fn input_and_output_pass_unchanged() {
    let bytes: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    let output = run(Command::new("cat").stdin(bytes.clone())).unwrap().ok().unwrap();
    assert_eq!((output.stdout == bytes, output.stdout_omitted), (true, 0));
    let empty = run(Command::new("cat")).unwrap();
    assert!(empty.stdout.is_empty() && empty.status.success(), "{empty:?}");
}

#[test]
fn unread_input_is_no_error() {
    let output = run(Command::new("true").stdin(vec![0; 1 << 20])).unwrap();
    assert!(output.status.success());
}

#[test]
fn exit_codes_and_signals_are_reported() {
    let output = run(shell("echo out; echo why >&2; exit 3")).unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(3), b"out\n".as_slice()));
    assert_eq!(failure(output.ok()), "the command `sh` exited with code 3: why");
    let killed = run(shell("kill -9 $$")).unwrap();
    assert_eq!(failure(killed.ok()), "the command `sh` was killed by signal 9");
}

#[test]
fn missing_program_names_its_path() {
    let reason = failure(run(Command::new("no-such-program").env("PATH", "/nowhere:/bin")));
    assert_eq!(
        reason,
        "cannot run `no-such-program`: there is no such program in PATH=/nowhere:/bin (hint: install it, or give its \
         path)"
    );
    assert!(failure(run(Command::new("/nowhere/x"))).contains("cannot run `/nowhere/x`: No such file"));
}

#[test]
fn command_has_own_environment() {
    let dir = tempfile::tempdir().unwrap();
    let shown = |command: Command| run(command).unwrap().ok().unwrap().stdout_text().unwrap().to_owned();
    let place = shown(Command::new("pwd").dir(dir.path()));
    assert_eq!(place.trim_end(), dir.path().canonicalize().unwrap().to_str().unwrap());
    assert_eq!(shown(shell("echo $A-$HOME").env("A", "1").env_remove("HOME")), "1-\n");
    let env = shown(Command::new("env").env_clear().env("ONLY", "this"));
    let env: Vec<_> = env.lines().filter(|line| !line.starts_with("GRISTMILL_LEASH=")).collect();
    assert_eq!(env, ["ONLY=this"]);
}

#[test]
fn too_much_output_ends_the_command() {
    let began = Instant::now();
    let script = "head -c 100000000 /dev/zero; sleep 60.4201";
    let reason = failure(run(shell(script)));
    assert!(reason.contains("wrote more than 8388608 bytes") && reason.contains("stdout_max"), "{reason}");
    assert!(began.elapsed() < Duration::from_secs(30));
    wait_gone("60.4201");
}

#[test]
fn tail_of_large_output_is_marked() {
    let output = run(shell("head -c 100000000 /dev/zero; printf end").stdout_tail(7)).unwrap();
    assert_eq!((output.stdout.as_slice(), output.stdout_omitted), (b"\0\0\0\0end".as_slice(), 99_999_996));
    let noisy = run(shell("head -c 1000000 /dev/zero >&2; exit 1")).unwrap();
    assert_eq!(
        (noisy.stderr.len(), noisy.stderr_omitted),
        (STDERR_TAIL_BYTES, 1_000_000 - STDERR_TAIL_BYTES as u64)
    );
}

#[test]
fn stop_ends_the_group() {
    let (trouble, took) =
        stop_when(shell("sleep 60.4202 & sleep 60.4203"), || wait_running(&["60.4202", "60.4203"]));
    assert_eq!(trouble, FailureKind::Stopped);
    assert!(took < KILL_DELAY, "SIGTERM was enough, but it took {took:?}");
    wait_gone("60.4202");
    wait_gone("60.4203");
}

#[test]
fn sigkill_follows_ignored_sigterm() {
    let (trouble, took) = stop_when(shell("trap '' TERM; sleep 60.4204"), || wait_running(&["60.4204"]));
    assert_eq!(trouble, FailureKind::Stopped);
    assert!(took >= KILL_DELAY && took < KILL_DELAY * 10, "{took:?}");
    wait_gone("60.4204");
}

#[test]
fn deadline_times_the_task_out() {
    let began = Instant::now();
    let cx = context(&StopSignal::new()).with_deadline(began + Duration::from_millis(200));
    let trouble = cx.run(Command::new("sleep").arg("60.4205")).unwrap_err().into_kind();
    assert_eq!(trouble, FailureKind::TimedOut);
    assert!(began.elapsed() < Duration::from_secs(30));
    wait_gone("60.4205");
}

#[test]
fn stopped_task_starts_nothing() {
    let stop = StopSignal::new();
    stop.stop();
    let file = tempfile::tempdir().unwrap();
    let made = file.path().join("made");
    let trouble = context(&stop).run(Command::new("touch").arg(&made)).unwrap_err().into_kind();
    assert_eq!((trouble, made.exists()), (FailureKind::Stopped, false));
}

/// A grandchild that holds the pipe is killed when the command has exited, and delays nothing.
#[test]
fn background_process_ends() {
    let began = Instant::now();
    let output = run(shell("sleep 60.4206 & echo hi")).unwrap();
    assert_eq!(output.stdout, b"hi\n");
    assert!(began.elapsed() < Duration::from_secs(30));
    wait_gone("60.4206");
}

/// A process in a session of its own survives, but its hold on the pipe delays the task by at most
/// 200 ms.
#[test]
fn escaped_process_delays_no_task() {
    let dir = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let script =
        "setsid sh -c 'touch escaped; exec sleep 3.4207' & until [ -e escaped ]; do :; done; echo hi";
    let output = run(shell(script).dir(dir.path())).unwrap();
    assert_eq!(output.stdout, b"hi\n");
    assert!(began.elapsed() < Duration::from_secs(3) && is_running("3.4207"));
}

#[tokio::test]
async fn dropped_future_ends_the_command() {
    let cx = context(&StopSignal::new());
    let running = cx.run_async(Command::new("sleep").arg("60.4208"));
    tokio::select! {
        _ = running => panic!("it ended"),
        found = tokio::task::spawn_blocking(|| wait_running(&["60.4208"])) => found.unwrap(),
    }
    tokio::task::spawn_blocking(|| wait_gone("60.4208")).await.unwrap();
}

/// A command also runs within a runtime, whose thread it blocks.
#[tokio::test]
async fn command_runs_within_async_code() {
    let cx = context(&StopSignal::new());
    assert_eq!(cx.run(shell("echo 1")).unwrap().stdout, b"1\n");
    assert_eq!(cx.run_async(shell("echo 2")).await.unwrap().stdout, b"2\n");
}

#[test]
fn commands_leak_nothing() {
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    // In a process of its own, since the other tests of this one open descriptors as well.
    if std::env::var_os("COUNTS_DESCRIPTORS").is_none() {
        let tests = std::env::current_exe().unwrap();
        let alone = std::process::Command::new(tests)
            .args(["--exact", "commands_leak_nothing"])
            .env("COUNTS_DESCRIPTORS", "1")
            .output()
            .unwrap();
        assert!(alone.status.success(), "{}", String::from_utf8_lossy(&alone.stdout));
        return;
    }
    run(Command::new("true")).unwrap();
    let before = descriptors();
    for _ in 0..50 {
        run(Command::new("true")).unwrap();
        failure(run(Command::new("/nowhere/x")));
    }
    assert_eq!(descriptors(), before);
    // Only the leash is left.
    assert_eq!(find::children_of(std::process::id()).len(), 1);
}

#[test]
fn find_sees_a_process() {
    let mut sleeping = std::process::Command::new("sleep").arg("60.4209").spawn().unwrap();
    wait_running(&["60.4209"]);
    assert!(is_running("60.4209"));
    sleeping.kill().unwrap();
    sleeping.wait().unwrap();
    assert!(!is_running("60.4209"));
}

/// Compiles only if the trait's futures are `Send`.
fn _is_send(cx: &TaskContext) -> impl Future<Output = Result<CommandOutput, TaskError>> + Send {
    cx.run_async(Command::new("true"))
}
