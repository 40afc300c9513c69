//! `testudo run`.

mod arguments;
mod report;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

pub use arguments::{Arguments, MICRO_EXITS, MICRO_PAGES};

use super::Failure;
use crate::config::{Console, Retired, RunOutcome, Stop, StopReason};
use crate::console::screen::{Screen, SharedRecord};
use crate::console::{signals, terminal, typed};
use crate::guest::GuestError;
use crate::machine;
use crate::observe::marker::{Marker, milestone};
use crate::observe::record::{Record, Stamp};
use crate::observe::stats;
use arguments::{Guest, Prepared};
use report::StatsFile;

/// Boots a guest and returns the exit status.
///
/// # Errors
/// Options that do not go together, files that cannot be used, and what the host refuses.
pub fn run(arguments: &Arguments) -> Result<u8, Failure> {
    arguments.check()?;
    let stop = Stop::default();
    signals::listen(&stop)?;
    let stats_file = arguments.stats.as_deref().map(StatsFile::open).transpose()?;
    let prepared = match arguments.prepare(&stop) {
        Err(GuestError::Interrupted) => return Ok(stop.requested().unwrap_or(StopReason::User).status()),
        prepared => prepared?,
    };
    report::begin(&prepared);
    if let Some(name) = &arguments.announce {
        report::announce(name)?;
    }
    let Ended { outcome, record, at } = attended(&prepared, &stop)?;
    let record = lock(&record);
    report::end(&outcome, at);
    if let Some(file) = stats_file {
        file.write(&stats::json(&prepared.config, &outcome, &record, at))?;
    }
    Ok(report::status(prepared.guest, &outcome, &record))
}

struct Ended {
    outcome: RunOutcome,
    record: SharedRecord,
    at: Stamp,
}

/// The run with the console attached; the terminal is as before when it returns.
fn attended(prepared: &Prepared, stop: &Stop) -> Result<Ended, Failure> {
    let input = typed::read_stdin(stop)?;
    let _raw = terminal::Raw::enter()?;
    if let Some(timeout) = prepared.config.timeout {
        end_after(timeout, stop)?;
    }
    let retired = Retired::default();
    let record = Arc::new(Mutex::new(Record::new(retired.clone())));
    if prepared.guest == Guest::ReadyMade {
        lock(&record).note(Marker::Milestone(milestone::L1_KERNEL.into()));
    }
    let output = Box::new(Screen::new(io::stdout(), record.clone(), stop.clone()));
    let outcome = machine::run(&prepared.config, Console { input, output, retired, stop: stop.clone() })?;
    let at = lock(&record).now();
    Ok(Ended { outcome, record, at })
}

fn end_after(timeout: Duration, stop: &Stop) -> io::Result<()> {
    let stop = stop.clone();
    let watch = move || {
        thread::sleep(timeout);
        stop.request(StopReason::Timeout);
    };
    thread::Builder::new().name("timeout".into()).spawn(watch).map(drop)
}

fn lock(record: &SharedRecord) -> MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}
