//! PCI configuration mechanism #1 and the host bridge. PCI Local Bus Specification, "Configuration Mechanism".

/// The configuration space of the host bridge at 00:00.0: an 82441FX without writable registers.
#[rustfmt::skip]
const HOST_BRIDGE: [u32; 3] = [
    // register
    0x1237_8086, // 00H: device, vendor
    0x0000_0000, // 04H: status, command
    0x0600_0002, // 08H: class code (bridge, host), revision
];

const ENABLE: u32 = 1 << 31;
/// Bus, device and function in the address register.
const TARGET: u32 = 0x00ff_ff00;

/// The address register, ports CF8H to CFBH.
#[derive(Clone, Debug, Default)]
pub struct Pci {
    address: u32,
}

impl Pci {
    /// Reads the address register.
    #[must_use]
    pub fn read_address(&self) -> u32 {
        self.address
    }

    /// Writes the address register; only 32-bit accesses reach it.
    pub fn write_address(&mut self, value: u32) {
        self.address = value & (ENABLE | TARGET | 0xfc);
    }

    /// Reads byte `offset` of the data port.
    #[must_use]
    pub fn read_data(&self, offset: u16) -> u8 {
        if self.address & ENABLE == 0 || self.address & TARGET != 0 {
            return 0xff;
        }
        let register = (self.address & 0xfc) as usize / 4;
        let value = HOST_BRIDGE.get(register).copied().unwrap_or(0);
        value.to_le_bytes()[usize::from(offset & 3)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(address: u32) -> u32 {
        let mut pci = Pci::default();
        pci.write_address(address);
        u32::from_le_bytes([0, 1, 2, 3].map(|offset| pci.read_data(offset)))
    }

    #[test]
    fn one_host_bridge_and_nothing_else() {
        assert_eq!(read(0x8000_0000), 0x1237_8086);
        assert_eq!(read(0x8000_0008) >> 16, 0x0600);
        assert_eq!(read(0x8000_00fc), 0);
        assert_eq!(read(0x8000_0100), u32::MAX, "function 1");
        assert_eq!(read(0x8000_0800), u32::MAX, "device 1");
        assert_eq!(read(0x8001_0000), u32::MAX, "bus 1");
        assert_eq!(read(0), u32::MAX, "not enabled");
    }

    #[test]
    fn the_address_reads_back() {
        let mut pci = Pci::default();
        pci.write_address(0x8000_0000);
        assert_eq!(pci.read_address(), 0x8000_0000);
        pci.write_address(u32::MAX);
        assert_eq!(pci.read_address(), 0x80ff_fffc);
    }
}
