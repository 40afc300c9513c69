//! What the guest prints: shown at once, and watched for marker lines.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::{Stop, StopReason};
use crate::observe::marker::Lines;
use crate::observe::record::Record;

/// A record that the console and the command share.
pub type SharedRecord = Arc<Mutex<Record>>;

/// The guest's output.
pub struct Screen<W> {
    shown: W,
    lines: Lines,
    record: SharedRecord,
    stop: Stop,
}

impl<W: Write> Screen<W> {
    /// Shows what is written on `shown` and notes markers in `record`; a screen that cannot be written to ends the run.
    pub fn new(shown: W, record: SharedRecord, stop: Stop) -> Self {
        Self { shown, lines: Lines::default(), record, stop }
    }
}

impl<W: Write> Write for Screen<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.shown.write_all(bytes).and_then(|()| self.shown.flush()).is_err() {
            self.stop.request(StopReason::User);
        }
        let record = &self.record;
        self.lines.take(bytes, |marker| record.lock().unwrap_or_else(PoisonError::into_inner).note(marker));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Retired;

    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn record() -> SharedRecord {
        Arc::new(Mutex::new(Record::new(Retired::default())))
    }

    #[test]
    fn bytes_are_shown_and_markers_noted() {
        let (record, mut shown) = (record(), Vec::new());
        let mut screen = Screen::new(&mut shown, record.clone(), Stop::default());
        for byte in b"testudo-milestone: end\r\n" {
            screen.write_all(&[*byte]).unwrap();
        }
        assert!(record.lock().unwrap().milestone("end").is_some());
        assert_eq!(shown, b"testudo-milestone: end\r\n");
    }

    #[test]
    fn a_closed_screen_ends_the_run() {
        let stop = Stop::default();
        Screen::new(Closed, record(), stop.clone()).write_all(b"x").unwrap();
        assert_eq!(stop.requested(), Some(StopReason::User));
    }
}
