//! What is typed, read by a thread of its own and queued for the guest's serial port.

use std::io::{self, IsTerminal, Read};
use std::thread;

use crossbeam::channel::{Receiver, Sender, bounded};

use super::escape::{HELP, Key, Keys};
use crate::config::{Stop, StopReason};

/// Bytes typed ahead of the guest; then the reader waits.
const AHEAD: usize = 4096;

/// Begins to read stdin. On a terminal Ctrl-A X ends the run; elsewhere all bytes are the guest's. The thread ends with
/// the process: a read of stdin cannot be taken back.
///
/// # Errors
/// No thread to be had.
pub fn read_stdin(stop: &Stop) -> io::Result<Receiver<u8>> {
    let (sender, receiver) = bounded(AHEAD);
    let stop = stop.clone();
    let reader = move || match io::stdin().is_terminal() {
        true => forward(io::stdin().lock(), &sender, Some(&stop)),
        false => forward(io::stdin().lock(), &sender, None),
    };
    thread::Builder::new().name("stdin".into()).spawn(reader)?;
    Ok(receiver)
}

/// Forwards bytes until they end or nobody takes them; with `keys_stop`, Ctrl-A is the escape key.
fn forward(mut from: impl Read, to: &Sender<u8>, keys_stop: Option<&Stop>) {
    let mut keys = Keys::default();
    let mut buffer = [0; 256];
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        for &byte in &buffer[..count] {
            let key = if keys_stop.is_some() { keys.take(byte) } else { Key::Guest(byte) };
            match (key, keys_stop) {
                (Key::Guest(byte), _) if to.send(byte).is_err() => return,
                (Key::Quit, Some(stop)) => stop.request(StopReason::User),
                (Key::Help, _) => eprint!("\r\n{HELP}"),
                (Key::Guest(_) | Key::Prefix | Key::Quit, _) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_is_forwarded_whole() {
        let (sender, receiver) = bounded(AHEAD);
        forward(&b"a\x01xb"[..], &sender, None);
        drop(sender);
        assert_eq!(receiver.iter().collect::<Vec<_>>(), b"a\x01xb");
    }

    #[test]
    fn ctrl_a_x_asks_for_the_end() {
        let (sender, receiver) = bounded(AHEAD);
        let stop = Stop::default();
        forward(&b"ab\x01x"[..], &sender, Some(&stop));
        drop(sender);
        assert_eq!(receiver.iter().collect::<Vec<_>>(), b"ab");
        assert_eq!(stop.requested(), Some(StopReason::User));
    }
}
