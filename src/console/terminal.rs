//! The terminal's modes: raw while the guest has it, as found afterwards, however the run ends.

use std::io::{self, IsTerminal};
use std::sync::{Mutex, Once, PoisonError};

use rustix::termios::{OptionalActions, OutputModes, Termios, tcgetattr, tcsetattr};

/// The modes to restore, while they are not in force. Global because a panic hook and a second signal restore them, too.
static FOUND: Mutex<Option<Termios>> = Mutex::new(None);
static HOOK: Once = Once::new();

/// Raw modes until it is dropped.
#[must_use]
pub struct Raw(());

impl Raw {
    /// Makes stdin raw if it is a terminal: each key goes to the guest at once, Ctrl-C included. Output keeps its
    /// line ends, for the messages on stderr.
    ///
    /// # Errors
    /// What the host refuses.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let found = tcgetattr(&stdin)?;
        let mut raw = found.clone();
        raw.make_raw();
        raw.output_modes |= found.output_modes & (OutputModes::OPOST | OutputModes::ONLCR);
        restore_on_panic();
        *FOUND.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(Self(())))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal back as it was found, if it is raw.
pub fn restore() {
    if let Some(found) = FOUND.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // A terminal that is gone needs no restoring.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &found);
    }
}

fn restore_on_panic() {
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            before(panic);
        }));
    });
}
