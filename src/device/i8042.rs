//! The keyboard controller, with nothing plugged in. IBM, "Personal System/2 Hardware Interface Technical
//! Reference", "Keyboard and Auxiliary Device Controller".

use super::Request;

const OUTPUT_FULL: u8 = 1 << 0;
const SYSTEM: u8 = 1 << 2;
const LAST_WAS_COMMAND: u8 = 1 << 3;
const UNLOCKED: u8 = 1 << 4;
const FROM_AUXILIARY: u8 = 1 << 5;

/// Command byte: the keyboard's interrupt is enabled.
const KEYBOARD_INTERRUPT: u8 = 1 << 0;
/// Command byte: self test passed, keyboard and auxiliary device disabled.
const COMMAND_BYTE_DEFAULT: u8 = 0x34;
const KEYBOARD_DISABLED: u8 = 1 << 4;
const AUXILIARY_DISABLED: u8 = 1 << 5;

/// Output port: not in reset, A20 open.
const OUTPUT_PORT: u8 = 0x03;
const NOT_RESET: u8 = 1 << 0;

/// What the next write to the data port is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expect {
    Device,
    CommandByte,
    OutputPort,
    KeyboardBuffer,
    AuxiliaryBuffer,
    AuxiliaryDevice,
}

/// The controller.
#[derive(Clone, Debug)]
pub struct I8042 {
    command_byte: u8,
    output: u8,
    status: u8,
    expect: Expect,
}

impl Default for I8042 {
    fn default() -> Self {
        Self {
            command_byte: COMMAND_BYTE_DEFAULT,
            output: 0,
            status: SYSTEM | UNLOCKED,
            expect: Expect::Device,
        }
    }
}

impl I8042 {
    /// Reads port 60H.
    pub fn read_data(&mut self) -> u8 {
        self.status &= !(OUTPUT_FULL | FROM_AUXILIARY);
        self.output
    }

    /// Reads port 64H.
    #[must_use]
    pub fn read_status(&self) -> u8 {
        self.status
    }

    fn answer(&mut self, value: u8) {
        self.output = value;
        self.status |= OUTPUT_FULL;
    }

    /// Writes port 60H.
    pub fn write_data(&mut self, value: u8) -> Option<Request> {
        self.status &= !LAST_WAS_COMMAND;
        match std::mem::replace(&mut self.expect, Expect::Device) {
            Expect::CommandByte => self.command_byte = value,
            Expect::OutputPort if value & NOT_RESET == 0 => return Some(Request::Reset),
            Expect::KeyboardBuffer => self.answer(value),
            Expect::AuxiliaryBuffer => {
                self.answer(value);
                self.status |= FROM_AUXILIARY;
            }
            // Nobody is there to answer; the A20 gate is always open.
            Expect::Device | Expect::AuxiliaryDevice | Expect::OutputPort => {}
        }
        None
    }

    /// Writes port 64H.
    pub fn write_command(&mut self, command: u8) -> Option<Request> {
        self.status |= LAST_WAS_COMMAND;
        self.expect = Expect::Device;
        match command {
            0x20 => self.answer(self.command_byte),
            0x60 => self.expect = Expect::CommandByte,
            0xa7 => self.command_byte |= AUXILIARY_DISABLED,
            0xa8 => self.command_byte &= !AUXILIARY_DISABLED,
            0xa9 | 0xab => self.answer(0x00), // interface tests: no error
            0xaa => self.answer(0x55),        // self test passed
            0xad => self.command_byte |= KEYBOARD_DISABLED,
            0xae => self.command_byte &= !KEYBOARD_DISABLED,
            0xc0 => self.answer(0x80), // input port: not inhibited
            0xd0 => self.answer(OUTPUT_PORT | (self.status & OUTPUT_FULL) << 4),
            0xd1 => self.expect = Expect::OutputPort,
            0xd2 => self.expect = Expect::KeyboardBuffer,
            0xd3 => self.expect = Expect::AuxiliaryBuffer,
            0xd4 => self.expect = Expect::AuxiliaryDevice,
            // Pulses the output-port bits that are 0; bit 0 is the reset line.
            0xf0..=0xff if command & NOT_RESET == 0 => return Some(Request::Reset),
            _ => {}
        }
        None
    }

    /// The level of IRQ 1. (IRQ 12 would be the auxiliary device's; there is none.)
    #[must_use]
    pub fn irq(&self) -> bool {
        let keyboard_byte = self.status & (OUTPUT_FULL | FROM_AUXILIARY) == OUTPUT_FULL;
        keyboard_byte && self.command_byte & KEYBOARD_INTERRUPT != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn self_test_and_command_byte() {
        let mut controller = I8042::default();
        assert_eq!(controller.read_status() & OUTPUT_FULL, 0);
        controller.write_command(0xaa);
        assert_eq!(controller.read_status() & OUTPUT_FULL, OUTPUT_FULL);
        assert_eq!(controller.read_data(), 0x55);
        assert_eq!(controller.read_status() & OUTPUT_FULL, 0);
        controller.write_command(0x60);
        controller.write_data(0x43);
        controller.write_command(0x20);
        assert!(controller.irq());
        assert_eq!(controller.read_data(), 0x43);
        assert!(!controller.irq());
    }

    #[test]
    fn reset_by_pulse_or_output_port() {
        let mut controller = I8042::default();
        assert_eq!(controller.write_command(0xfe), Some(Request::Reset));
        assert_eq!(controller.write_command(0xff), None);
        controller.write_command(0xd1);
        assert_eq!(controller.write_data(0xfe), Some(Request::Reset));
        controller.write_command(0xd1);
        assert_eq!(controller.write_data(0xdf), None);
    }

    #[test]
    fn the_loop_commands_tell_the_source() {
        let mut controller = I8042::default();
        controller.write_command(0xd3);
        controller.write_data(0x5a);
        assert_eq!(controller.read_status() & 0x21, 0x21);
        assert_eq!(controller.read_data(), 0x5a);
    }

    #[test]
    fn no_keyboard_answers() {
        let mut controller = I8042::default();
        controller.write_data(0xff);
        assert_eq!(controller.read_status() & OUTPUT_FULL, 0);
    }
}
