//! The whole: Debian's kernel as L1 boots Debian's kernel as L2, and does so twice in the same way.

use std::process::{Command, Stdio};
use std::thread;

use serde_json::Value;

const MILESTONES: [&str; 6] = ["l1_kernel", "l1_userspace", "kvm_loaded", "l2_kernel", "l2_userspace", "end"];

/// What a run of the ready-made guest printed, and its statistics.
struct Run {
    console: String,
    stats: Value,
}

fn run() -> Run {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let stats = directory.path().join("stats.json");
    let output = Command::new(env!("CARGO_BIN_EXE_testudo"))
        .args(["run", "--verbose-guest", "--timeout", "20m", "--stats"])
        .arg(&stats)
        .stdin(Stdio::null())
        .output()
        .expect("the command can be started");
    let console = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{console}\n{stderr}");
    let stats = std::fs::read(stats).expect("the statistics are written");
    Run { console, stats: serde_json::from_slice(&stats).expect("they are JSON") }
}

/// Takes out what depends on the host's speed.
fn without_wall_time(value: &mut Value) {
    if let Value::Object(members) = value {
        members.retain(|key, _| !key.starts_with("wall_") && key != "peak_rss_bytes");
        members.values_mut().for_each(without_wall_time);
    }
}

/// The kernels' lines that would speak of a machine or a processor that is not as it should be.
fn complaints(console: &str) -> Vec<&str> {
    let words = ["WARNING", "BUG", "Oops", "Call Trace", "unexpected", "nhandled", "Kernel panic"];
    console.lines().filter(|line| words.iter().any(|word| line.contains(word))).collect()
}

#[test]
fn l1_boots_l2_and_the_same_again() {
    let second = thread::spawn(run);
    let mut first = run();
    let mut second = second.join().expect("the second run ends like the first");

    for name in MILESTONES {
        assert!(first.stats["milestones"][name]["instructions"].is_u64(), "{name}: {}", first.stats);
    }
    for parameter in ["ept=Y", "unrestricted_guest=Y", "vpid=Y"] {
        assert!(first.console.contains(&format!("kvm_intel {parameter}")), "{parameter}:\n{}", first.console);
    }
    assert!(first.console.contains("L2: Linux"), "{}", first.console);
    let quiet: Vec<&str> = Vec::new();
    assert_eq!(complaints(&first.console), quiet);
    assert!(first.stats["exits"]["from_l2"]["reflected"]["ept_violation"].as_u64() > Some(1000));
    assert!(first.stats["vmcs_accesses"]["vmread"].as_u64() > Some(1000));

    assert_eq!(first.console, second.console);
    without_wall_time(&mut first.stats);
    without_wall_time(&mut second.stats);
    assert_eq!(first.stats, second.stats);
}
