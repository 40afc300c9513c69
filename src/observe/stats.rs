//! The JSON of `--stats`.

use serde_json::{Map, Value, json};

use super::counters::Counters;
use super::record::{Record, Stamp, TimedLoop};
use crate::config::{ClockKind, CpuModel, FeatureChange, ProcessorKind, RunConfig, RunOutcome};
use vmcs12::exit::by_reason::ByReason;

/// The statistics of a run that has ended.
#[must_use]
pub fn json(config: &RunConfig, outcome: &RunOutcome, record: &Record, ended: Stamp) -> Value {
    let counted = config.processor == ProcessorKind::Soft;
    json!({
        "testudo": env!("CARGO_PKG_VERSION"),
        "processor": config.processor.name(),
        "cpu": config.cpu.to_string(),
        "cpuid_digest": outcome.cpuid_digest,
        "cpus": config.cpus,
        "memory_bytes": config.memory,
        "clock": config.clock.name(),
        "seed": config.seed,
        "end": outcome.end.name(),
        "wall_s": ended.wall_s,
        "instructions": if counted { instructions(&outcome.counters) } else { Value::Null },
        "milestones": Map::from_iter(
            record.milestones().iter().map(|(name, stamp)| (name.clone(), milestone(*stamp, counted))),
        ),
        "exits": exits(&outcome.counters),
        "vmcs_accesses": { "vmread": outcome.counters.vmreads, "vmwrite": outcome.counters.vmwrites },
        "micro": Map::from_iter(
            record.loops().iter().map(|timed| (timed.name.clone(), timed_loop(timed, counted))),
        ),
        "peak_rss_bytes": peak_rss(),
    })
}

fn instructions(counters: &Counters) -> Value {
    let (all, l2) = (counters.instructions, counters.instructions_l2);
    json!({ "total": all, "l1": all - l2.min(all), "l2": l2 })
}

fn milestone(stamp: Stamp, counted: bool) -> Value {
    json!({ "wall_s": stamp.wall_s, "instructions": counted.then_some(stamp.instructions) })
}

fn timed_loop(timed: &TimedLoop, counted: bool) -> Value {
    let per_exit = |total: f64| total / timed.turns as f64;
    json!({
        "exits": timed.turns,
        "wall_ns_per_exit": per_exit(timed.wall_s * 1e9),
        "instructions_per_exit": counted.then(|| per_exit(timed.instructions as f64)),
    })
}

fn exits(counters: &Counters) -> Value {
    json!({
        "from_l1": { "total": counters.from_l1.total(), "handled": by_reason(&counters.from_l1) },
        "from_l2": {
            "total": counters.from_l2_kept.total() + counters.from_l2_reflected.total(),
            "handled": by_reason(&counters.from_l2_kept),
            "reflected": by_reason(&counters.from_l2_reflected),
        },
    })
}

fn by_reason(counts: &ByReason) -> Map<String, Value> {
    counts.nonzero().map(|(reason, count)| (snake_case(reason.name()), json!(count))).collect()
}

/// `EptViolation` as `ept_violation`.
fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

/// The most memory that this process has had in RAM, guest RAM included. proc(5), `VmHWM`.
fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}

impl ProcessorKind {
    /// As `--processor` takes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Soft => "soft",
            Self::Kvm => "kvm",
            Self::KvmNested => "kvm-nested",
        }
    }
}

impl ClockKind {
    /// As `--clock` takes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Virtual => "virtual",
            Self::Host => "host",
        }
    }
}

impl std::fmt::Display for CpuModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.profile)?;
        self.changes.iter().try_for_each(|change| match change {
            FeatureChange::Add(name) => write!(f, ",+{name}"),
            FeatureChange::Remove(name) => write!(f, ",-{name}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vmcs12::exit::Reason;

    use super::*;
    use crate::config::{End, Image, Nested, Retired};
    use crate::observe::marker::Marker;

    fn config() -> RunConfig {
        RunConfig {
            kernel: Image { name: "k".into(), bytes: Arc::default() },
            initrd: None,
            modules: Vec::new(),
            cmdline: String::new(),
            cpus: 1,
            memory: 1 << 30,
            cpu: CpuModel { profile: "haswell".into(), changes: vec![FeatureChange::Add("avx2".into())] },
            processor: ProcessorKind::Soft,
            nested: Nested::On,
            clock: ClockKind::Virtual,
            seed: 7,
            timeout: None,
        }
    }

    fn outcome() -> RunOutcome {
        let mut counters =
            Counters { instructions: 100, instructions_l2: 30, vmreads: 5, ..Counters::default() };
        counters.from_l1.add(Reason::Cpuid);
        counters.from_l2_kept.add(Reason::EptViolation);
        counters.from_l2_reflected.add(Reason::Cpuid);
        counters.from_l2_reflected.add(Reason::Cpuid);
        RunOutcome { end: End::PowerOff, counters, cpuid_digest: "ab12".into(), last_exits: Vec::new() }
    }

    #[test]
    fn the_shape_is_as_documented() {
        let retired = Retired::default();
        let mut record = Record::new(retired.clone());
        retired.publish(40);
        record.note(Marker::Milestone("l1_userspace".into()));
        record.note(Marker::LoopBegins("cpuid".into(), 4));
        retired.publish(80);
        record.note(Marker::LoopEnds("cpuid".into(), 4));
        let stats = json(&config(), &outcome(), &record, record.now());
        assert_eq!(stats["milestones"]["l1_userspace"]["instructions"], 40);
        assert!(stats["milestones"]["l1_userspace"]["wall_s"].is_f64());
        assert_eq!(stats["exits"]["from_l1"]["handled"]["cpuid"], 1);
        assert_eq!(stats["exits"]["from_l2"]["total"], 3);
        assert_eq!(stats["exits"]["from_l2"]["handled"]["ept_violation"], 1);
        assert_eq!(stats["exits"]["from_l2"]["reflected"]["cpuid"], 2);
        assert_eq!(stats["vmcs_accesses"]["vmread"], 5);
        assert_eq!(stats["micro"]["cpuid"]["instructions_per_exit"], 10.0);
        assert_eq!(stats["instructions"]["l1"], 70);
        assert_eq!(stats["cpuid_digest"], "ab12");
        assert_eq!(stats["cpu"], "haswell,+avx2");
        assert_eq!(stats["end"], "power_off");
        assert!(stats["peak_rss_bytes"].as_u64().unwrap() > 1 << 20);
    }

    #[test]
    fn what_is_not_counted_is_null() {
        let mut record = Record::new(Retired::default());
        record.note(Marker::Milestone("l2_kernel".into()));
        let config = RunConfig { processor: ProcessorKind::Kvm, ..config() };
        let stats = json(&config, &outcome(), &record, record.now());
        assert!(stats["instructions"].is_null());
        assert!(stats["milestones"]["l2_kernel"]["instructions"].is_null());
    }

    #[test]
    fn reasons_are_named_in_the_style_of_the_manual_tables() {
        assert_eq!(snake_case("ExceptionOrNmi"), "exception_or_nmi");
        assert_eq!(snake_case("Cpuid"), "cpuid");
    }
}
