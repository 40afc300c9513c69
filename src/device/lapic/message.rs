//! Interrupt messages and who is addressed. SDM Vol. 3, "Determining IPI Destination".

use super::LocalApic;
use super::base::State;

/// Delivery mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[allow(missing_docs, reason = "the manual's own names")]
pub enum Mode {
    Fixed,
    LowestPriority,
    Smi,
    Reserved,
    Nmi,
    Init,
    StartUp,
    ExtInt,
}

impl Mode {
    /// The mode with this encoding; more than three bits are dropped.
    #[must_use]
    pub fn from_bits(bits: u8) -> Self {
        match bits & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            3 => Self::Reserved,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            _ => Self::ExtInt,
        }
    }
}

/// Trigger mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the manual's own names")]
pub enum Trigger {
    Edge,
    Level,
}

/// Whom a message is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Destination {
    /// The APIC with this ID, or all by the broadcast ID.
    Physical(u32),
    /// The APICs that match by their logical destination registers.
    Logical(u32),
    /// The processor with this index.
    Processor(usize),
    /// All.
    All,
    /// All but the processor with this index.
    AllBut(usize),
}

/// An interrupt message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// Vector.
    pub vector: u8,
    /// Delivery mode.
    pub mode: Mode,
    /// Trigger mode.
    pub trigger: Trigger,
    /// Whom it is for.
    pub destination: Destination,
}

impl LocalApic {
    /// Is a message for `destination` for this APIC, that of processor `index`?
    #[must_use]
    pub fn is_addressed(&self, index: usize, destination: Destination) -> bool {
        match destination {
            Destination::All => true,
            Destination::AllBut(other) => index != other,
            Destination::Processor(this) => index == this,
            Destination::Physical(id) => self.matches_physical(id),
            Destination::Logical(address) => self.matches_logical(address),
        }
    }

    fn matches_physical(&self, id: u32) -> bool {
        match self.base.state() {
            State::X2Apic => id == u32::MAX || id == self.id,
            State::XApic | State::Disabled => id == 0xff || id == u32::MAX || id == self.id,
        }
    }

    /// SDM Vol. 3, "Logical Destination Mode", "Logical Destination Mode in x2APIC Mode".
    fn matches_logical(&self, address: u32) -> bool {
        let register = self.logical_destination;
        match self.base.state() {
            State::X2Apic if address == u32::MAX => true,
            State::X2Apic => register >> 16 == address >> 16 && register & address & 0xffff != 0,
            State::XApic | State::Disabled => {
                let logical_id = register >> 24;
                let is_flat = self.destination_format >> 28 == 0xf;
                let same_cluster = logical_id >> 4 == address >> 4 & 0xf;
                match address {
                    0xff | u32::MAX => true,
                    0x100.. => false,
                    _ if is_flat => logical_id & address != 0,
                    _ => same_cluster && logical_id & address & 0xf != 0,
                }
            }
        }
    }
}
