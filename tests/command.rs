//! The command as a user meets it: bad input, guests that go wrong, ends from outside, the terminal.

#[path = "command/guest.rs"]
mod guest;
#[path = "command/terminal.rs"]
mod terminal;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// No guest here needs longer, on however slow a machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn testudo() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_testudo"));
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    testudo().arg("run").args(arguments).output().expect("the command can be started")
}

/// A directory with files for a guest.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory for the test"))
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    fn with(&self, name: &str, content: &[u8]) -> String {
        fs::write(self.path(name), content).expect("the file can be written");
        self.path(name).display().to_string()
    }
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).expect("the directory can be listed");
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
    }
}

#[track_caller]
fn assert_ends(output: &Output, status: i32, said: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{stderr}");
    for words in said {
        assert!(stderr.contains(words), "'{words}' is not in:\n{stderr}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let files = Files::new();
    let kernel = files.with("kernel", &guest::powering_off());
    assert_ends(&run(&["--kernel", "/none/kernel"]), 2, &["/none/kernel", "No such file"]);
    assert_ends(
        &run(&["--kernel", &kernel, "--initrd", "/none/initrd"]),
        2,
        &["/none/initrd", "No such file"],
    );
    assert_ends(
        &run(&["--kernel", &kernel, "--module", "/none/module a"]),
        2,
        &["/none/module", "No such file"],
    );
    assert_ends(
        &run(&["--kernel", &kernel, "--modules", "/none/modules"]),
        2,
        &["/none/modules", "No such file"],
    );
}

#[test]
fn what_is_no_kernel_is_refused() {
    let files = Files::new();
    let long = vec![0x5a; 100_000];
    let elf = [b"\x7fELF\x02\x01\x01".as_slice(), &[0; 60]].concat();
    for (name, content) in [("empty", &b""[..]), ("text", b"no kernel"), ("noise", &long), ("elf", &elf)] {
        let kernel = files.with(name, content);
        assert_ends(&run(&["--kernel", &kernel, "--timeout", "60s"]), 2, &[&kernel]);
    }
}

#[test]
fn a_truncated_linux_is_refused() {
    let files = Files::new();
    let mut kernel = vec![0; 4096];
    kernel[0x1f1] = 30; // setup_sects: more than the file has
    kernel[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    let kernel = files.with("bzImage", &kernel);
    assert_ends(&run(&["--kernel", &kernel, "--timeout", "60s"]), 2, &[&kernel]);
}

#[test]
fn wrong_options_are_named() {
    let files = Files::new();
    let kernel = files.with("kernel", &guest::powering_off());
    assert_ends(&run(&["--memory", "12Q"]), 2, &["--memory", "12Q"]);
    assert_ends(&run(&["--cpus", "0"]), 2, &["--cpus"]);
    assert_ends(&run(&["--timeout", "soon"]), 2, &["--timeout", "soon"]);
    assert_ends(&run(&["--kernel", &kernel, "--cpu", "i386"]), 2, &["i386"]);
    assert_ends(&run(&["--kernel", &kernel, "--cpu", "haswell,+warp"]), 2, &["warp"]);
    assert_ends(
        &run(&["--kernel", &kernel, "--processor", "kvm-nested"]),
        2,
        &["kvm-nested is not available"],
    );
    assert_ends(&run(&["--kernel", &kernel, "--processor", "kvm"]), 2, &["--nested off"]);
    assert_ends(&run(&["--nested", "off"]), 2, &["needs VMX", "--nested on"]);
    assert_ends(&run(&["--kernel", &kernel, "--stats", "/none/stats.json"]), 2, &["/none/stats.json"]);
}

#[test]
fn a_guest_ends_with_its_status() {
    let files = Files::new();
    let ends = [
        ("off", guest::powering_off(), 0, "switched the machine off"),
        ("reset", guest::resetting(), 4, "reset the machine"),
        ("fault", guest::triple_faulting(), 6, "triple fault"),
        ("halt", guest::halting(), 8, "halted"),
        ("exit", guest::exiting_with(0x10), 33, "debug-exit"),
    ];
    for (name, kernel, status, said) in ends {
        let kernel = files.with(name, &kernel);
        assert_ends(&run(&["--kernel", &kernel, "--timeout", "60s"]), status, &[said]);
    }
}

#[test]
fn a_bad_end_shows_the_last_exits() {
    let files = Files::new();
    let kernel = files.with("kernel", &guest::launching_without_vmxon());
    assert_ends(&run(&["--kernel", &kernel, "--timeout", "60s"]), 6, &["the last exits:", "triple fault"]);
}

#[test]
fn a_guest_that_loops_ends_by_timeout() {
    let files = Files::new();
    let kernel = files.with("kernel", &guest::looping());
    let stats = files.path("stats.json");
    let started = Instant::now();
    let output = run(&["--kernel", &kernel, "--timeout", "300ms", "--stats", stats.to_str().unwrap()]);
    assert_ends(&output, 124, &["--timeout passed"]);
    assert!(started.elapsed() < PATIENCE);
    let stats: Value = serde_json::from_slice(&fs::read(stats).unwrap()).unwrap();
    assert_eq!(stats["end"], "timeout");
    assert!(stats["instructions"]["total"].as_u64().unwrap() > 0);
}

#[test]
fn the_serial_port_is_stdout_and_milestones_are_stamped() {
    let files = Files::new();
    let kernel = files.with("kernel", &guest::printing("testudo-milestone: l1_userspace\r\n"));
    let output = run(&["--kernel", &kernel, "--timeout", "60s", "--stats", "-"]);
    assert_ends(&output, 0, &[]);
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stats =
        stdout.strip_prefix("testudo-milestone: l1_userspace\r\n").expect("the guest's line comes first");
    let stats: Value = serde_json::from_str(stats).unwrap();
    let milestone = &stats["milestones"]["l1_userspace"];
    let instructions = milestone["instructions"].as_u64().unwrap();
    assert!((1..=stats["instructions"]["total"].as_u64().unwrap()).contains(&instructions));
    assert!(milestone["wall_s"].as_f64().unwrap() > 0.0);
    assert!(stats["exits"]["from_l1"]["handled"]["io_instruction"].as_u64().unwrap() > 30);
    assert_eq!(stats["end"], "power_off");
}

#[test]
fn signals_end_a_run_and_leave_nothing_behind() {
    let files = Files::new();
    let kernel = files.with("kernel", &guest::printing_then_looping("ready\n"));
    for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let stats = files.path("stats.json");
        let mut command = testudo();
        command.args(["run", "--kernel", &kernel, "--stats"]).arg(&stats);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_for(child.stdout.as_mut().unwrap(), b"ready");
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_ends(&child.wait_with_output().unwrap(), status, &["ended by"]);
        fs::remove_file(&stats).expect("the statistics are written");
        assert_eq!(files.names(), ["kernel"]);
    }
}

fn wait_for(from: &mut impl std::io::Read, what: &[u8]) {
    let (mut seen, mut byte) = (Vec::new(), [0]);
    while !seen.ends_with(what) {
        assert_eq!(from.read(&mut byte).unwrap(), 1, "ended after {:?}", String::from_utf8_lossy(&seen));
        seen.push(byte[0]);
    }
}

#[test]
fn a_closed_stdout_ends_the_run() {
    let files = Files::new();
    let kernel = files.with("kernel", &guest::printing_for_ever("line\n"));
    let mut child = testudo()
        .args(["run", "--kernel", &kernel, "--timeout", "60s"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for(child.stdout.as_mut().unwrap(), b"line\n");
    drop(child.stdout.take());
    assert_ends(&child.wait_with_output().unwrap(), 130, &[]);
}

#[test]
fn ctrl_a_x_ends_a_run_and_the_terminal_is_restored() {
    let files = Files::new();
    let kernel = files.with("kernel", &guest::printing_then_looping("ready\n"));
    let mut terminal = terminal::Terminal::new();
    let before = terminal.modes();
    let mut child = terminal.run(testudo().args(["run", "--kernel", &kernel]));
    terminal.wait_for(b"ready");
    assert_ne!(terminal.modes(), before, "raw while the guest has it");
    terminal.type_keys(b"\x03"); // Ctrl-C is the guest's
    terminal.type_keys(b"\x01x");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(terminal.modes(), before);
}

#[test]
fn sigterm_restores_the_terminal() {
    let files = Files::new();
    let kernel = files.with("kernel", &guest::printing_then_looping("ready\n"));
    let terminal = terminal::Terminal::new();
    let before = terminal.modes();
    let mut child = terminal.run(testudo().args(["run", "--kernel", &kernel]));
    terminal.wait_for(b"ready");
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert_eq!(terminal.modes(), before);
}

#[test]
fn without_apt_and_cache_the_options_to_pass_are_named() {
    let files = Files::new();
    let output = testudo()
        .args(["run", "--timeout", "60s"])
        .env("PATH", files.0.path())
        .env("XDG_CACHE_HOME", files.path("cache"))
        .output()
        .unwrap();
    assert_ends(&output, 2, &["apt", "--kernel", "--modules"]);
    let left = fs::read_dir(files.path("cache/testudo")).unwrap().count();
    assert_eq!(left, 1, "only the lock is left");
}

#[test]
fn help_has_examples_and_statuses() {
    let output = run(&["--help"]);
    let help = String::from_utf8(output.stdout).unwrap();
    for words in ["Examples:", "Exit status:", "--stats", "--micro", "Ready-made guest"] {
        assert!(help.contains(words), "{words}");
    }
    assert!(Path::new(env!("CARGO_BIN_EXE_testudo")).exists());
}
