//! The escape key: Ctrl-A takes the next key away from the guest, as with QEMU.

/// Ctrl-A.
const PREFIX: u8 = 0x01;

/// What a typed byte means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Key {
    /// It is for the guest.
    Guest(u8),
    /// Ctrl-A: the next one decides.
    Prefix,
    /// Ctrl-A X: the run is to end.
    Quit,
    /// Ctrl-A H, or another key after Ctrl-A: say which there are.
    Help,
}

/// What the help says.
pub const HELP: &str =
    "Ctrl-A X  end the run\r\nCtrl-A A  send Ctrl-A to the guest\r\nCtrl-A H  this help\r\n";

/// Remembers whether the last key was Ctrl-A.
#[derive(Default)]
pub struct Keys {
    prefixed: bool,
}

impl Keys {
    /// The meaning of the next byte.
    pub fn take(&mut self, byte: u8) -> Key {
        if !std::mem::take(&mut self.prefixed) {
            self.prefixed = byte == PREFIX;
            return if self.prefixed { Key::Prefix } else { Key::Guest(byte) };
        }
        match byte {
            b'x' | b'X' => Key::Quit,
            b'a' | b'A' | PREFIX => Key::Guest(PREFIX),
            _ => Key::Help,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meanings(typed: &[u8]) -> Vec<Key> {
        let mut keys = Keys::default();
        typed.iter().map(|&byte| keys.take(byte)).collect()
    }

    #[test]
    fn keys_are_the_guests_unless_after_ctrl_a() {
        assert_eq!(meanings(b"x\x03"), [Key::Guest(b'x'), Key::Guest(3)]);
        assert_eq!(meanings(b"\x01x"), [Key::Prefix, Key::Quit]);
        assert_eq!(meanings(b"\x01\x01x"), [Key::Prefix, Key::Guest(1), Key::Guest(b'x')]);
        assert_eq!(meanings(b"\x01a"), [Key::Prefix, Key::Guest(1)]);
        assert_eq!(meanings(b"\x01?x"), [Key::Prefix, Key::Help, Key::Guest(b'x')]);
    }
}
