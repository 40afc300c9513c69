//! The machine's devices: state machines over virtual time.
//!
//! A device never reads host time, never locks and never starts a thread: the time of an access comes in as
//! [`Nanos`], and a device that wants to act by itself says when (`next_event`) and is then ticked.
//! Start with [`Devices`], which owns all of them and routes ports, MMIO and interrupts; [`Peripherals`] is the
//! part that is left when somebody else (KVM) provides interrupt controllers and timer.

pub mod bus;
pub mod frequency;
pub mod i8042;
pub mod ioapic;
pub mod lapic;
pub mod pci;
pub mod peripherals;
pub mod pic;
pub mod pit;
pub mod pm;
pub mod rtc;
pub mod serial;

pub use bus::{Devices, Machine};
pub use peripherals::{Peripherals, Platform};

/// Virtual time since power-on, in nanoseconds.
pub type Nanos = u64;

/// What a guest's access asks of the run loop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// ACPI S5: the machine goes off.
    PowerOff,
    /// Reset by the reset register or the keyboard controller.
    Reset,
    /// A write of this value to the debug-exit port.
    DebugExit(u32),
}

/// ISA interrupt lines, as devices are wired on a PC.
#[allow(missing_docs, reason = "the devices' own names")]
pub mod irq {
    pub const TIMER: u8 = 0;
    pub const KEYBOARD: u8 = 1;
    pub const CASCADE: u8 = 2;
    pub const SERIAL: u8 = 4;
    pub const RTC: u8 = 8;
    pub const SCI: u8 = 9;
}

/// All ones in the low `size` bytes: what an access reads where nothing answers.
#[must_use]
pub fn all_ones(size: u8) -> u64 {
    match size {
        0 => 0,
        1..=7 => (1 << (u32::from(size) * 8)) - 1,
        _ => u64::MAX,
    }
}
