//! SIGINT, SIGTERM and SIGHUP: the first asks the run to end, the second ends the process.

use std::io;
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::terminal;
use crate::config::{Stop, StopReason};

/// Begins to listen.
///
/// # Errors
/// What the host refuses.
pub fn listen(stop: &Stop) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let stop = stop.clone();
    let listener = move || {
        for signal in signals.forever() {
            if stop.requested().is_some() {
                terminal::restore();
                std::process::exit(i32::from(reason(signal).status()));
            }
            stop.request(reason(signal));
        }
    };
    thread::Builder::new().name("signals".into()).spawn(listener)?;
    Ok(())
}

fn reason(signal: i32) -> StopReason {
    if signal == SIGINT { StopReason::User } else { StopReason::Signal(signal) }
}
