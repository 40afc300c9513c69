//! What `testudo run` says: on stderr before and after, and in the file of `--stats`.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::NamedTempFile;

use super::arguments::{Guest, Prepared};
use crate::cli::Failure;
use crate::config::{End, ProcessorKind, RunOutcome};
use crate::observe::marker::{milestone, milestone_line};
use crate::observe::record::{Record, Stamp};
use crate::status;

const MIB: u64 = 1 << 20;

/// Says what runs, and on what.
pub fn begin(prepared: &Prepared) {
    let config = &prepared.config;
    let cpu = match config.processor {
        ProcessorKind::Soft => config.cpu.to_string(),
        ProcessorKind::Kvm | ProcessorKind::KvmNested => "the host's CPU".into(),
    };
    let (processor, memory) = (config.processor.name(), config.memory / MIB);
    eprintln!("testudo: {processor} processor, {} x {cpu}, {memory} MiB: {}", config.cpus, prepared.origin);
}

/// Prints a milestone on stdout, for a Testudo outside.
///
/// # Errors
/// A stdout that cannot be written to.
pub fn announce(name: &str) -> io::Result<()> {
    let mut stdout = io::stdout();
    stdout.write_all(milestone_line(name).as_bytes())?;
    stdout.flush()
}

/// Says how the run ended, with the last exits where that may explain it.
pub fn end(outcome: &RunOutcome, ended: Stamp) {
    if !explains_itself(&outcome.end) && !outcome.last_exits.is_empty() {
        eprintln!("testudo: the last exits:");
        for exit in &outcome.last_exits {
            eprintln!("    {exit}");
        }
    }
    let instructions = match outcome.counters.instructions {
        0 => String::new(),
        count => format!(", {:.3} G instructions", count as f64 / 1e9),
    };
    eprintln!("testudo: {} ({:.2} s{instructions})", outcome.end, ended.wall_s);
}

fn explains_itself(end: &End) -> bool {
    match end {
        End::PowerOff | End::Reset | End::DebugExit(_) => true,
        End::TripleFault | End::Halted | End::VmxAbort(_) | End::Broken(_) | End::Stopped(_) => false,
    }
}

/// The exit status. The ready-made guest has not done its work until it has said so.
pub fn status(guest: Guest, outcome: &RunOutcome, record: &Record) -> u8 {
    let missing = milestone::ALL.iter().find(|name| record.milestone(name).is_none());
    match (guest, &outcome.end, missing) {
        (Guest::ReadyMade, End::PowerOff, Some(missing)) => {
            let why = record.failure().unwrap_or("the console says more");
            eprintln!("testudo: the ready-made guest did not reach {missing}: {why}");
            status::GUEST_FAILED
        }
        _ => outcome.end.status(),
    }
}

/// Where the statistics go. A file appears complete or not at all, and a place that cannot be written to is found
/// before the run.
pub enum StatsFile {
    /// Stdout, after the guest's output.
    Stdout,
    /// A pipe or a device.
    Special(File),
    /// A new file, renamed to its name when it is complete.
    New(NamedTempFile, PathBuf),
}

impl StatsFile {
    /// Opens the place that `--stats` names.
    ///
    /// # Errors
    /// A place that cannot be written to.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let refused = |error: io::Error| format!("cannot write {}: {error}", path.display());
        if path == Path::new("-") {
            return Ok(Self::Stdout);
        }
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => Err(refused(io::ErrorKind::IsADirectory.into()).into()),
            Ok(found) if !found.is_file() => {
                Ok(Self::Special(File::options().write(true).open(path).map_err(refused)?))
            }
            Ok(_) | Err(_) => {
                let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
                let new = tempfile::Builder::new()
                    .prefix(".testudo-stats-")
                    .permissions(Permissions::from_mode(0o644))
                    .tempfile_in(directory.unwrap_or(Path::new(".")));
                Ok(Self::New(new.map_err(refused)?, path.to_owned()))
            }
        }
    }

    /// Writes the statistics.
    ///
    /// # Errors
    /// What the host refuses.
    pub fn write(self, stats: &Value) -> Result<(), Failure> {
        let text = format!("{stats:#}\n");
        match self {
            Self::Stdout => io::stdout().write_all(text.as_bytes())?,
            Self::Special(mut file) => file.write_all(text.as_bytes())?,
            Self::New(mut file, path) => {
                file.write_all(text.as_bytes())?;
                file.persist(&path)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::Retired;
    use crate::observe::counters::Counters;
    use crate::observe::marker::Marker;

    fn outcome(end: End) -> RunOutcome {
        RunOutcome { end, counters: Counters::default(), cpuid_digest: String::new(), last_exits: Vec::new() }
    }

    #[test]
    fn the_ready_made_guest_is_done_when_it_says_so() {
        let mut record = Record::new(Retired::default());
        let off = outcome(End::PowerOff);
        assert_eq!(status(Guest::ReadyMade, &off, &record), status::GUEST_FAILED);
        assert_eq!(status(Guest::Own, &off, &record), status::DONE);
        assert_eq!(status(Guest::ReadyMade, &outcome(End::Reset), &record), status::RESET);
        for name in milestone::ALL {
            record.note(Marker::Milestone(name.into()));
        }
        assert_eq!(status(Guest::ReadyMade, &off, &record), status::DONE);
    }

    #[test]
    fn statistics_appear_complete_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("stats.json");
        drop(StatsFile::open(&path).unwrap());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        StatsFile::open(&path).unwrap().write(&json!({ "end": "power_off" })).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\n  \"end\": \"power_off\"\n}\n");
        assert!(StatsFile::open(&directory.path().join("none/stats.json")).is_err());
        assert!(StatsFile::open(directory.path()).is_err());
    }
}
