//! Where accesses to physical holes go while one instruction is completed for the VMM.

use vmcs12::addr::Pa;

/// Devices behind physical holes.
pub trait Bus {
    /// The hole that a guest-physical address which EPT does not map stands for, if it is a device's.
    fn hole(&self, at: u64) -> Option<Pa>;
    /// Reads `size` bytes (1, 2, 4 or 8).
    fn read(&mut self, at: Pa, size: usize) -> u64;
    /// Writes `size` bytes (1, 2, 4 or 8).
    fn write(&mut self, at: Pa, size: usize, value: u64);
}
