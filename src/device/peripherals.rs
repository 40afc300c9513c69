//! The devices that are the same whoever provides interrupt controllers and timer, on the port bus.

use super::i8042::I8042;
use super::pci::Pci;
use super::pm::{self, Pm};
use super::rtc::Rtc;
use super::serial::Serial;
use super::{Nanos, Request, all_ones, irq};
use std::io::Write;

/// What the peripherals must know of the machine.
pub struct Platform {
    /// Bytes of RAM below 4 GiB.
    pub memory_below_4g: u64,
    /// Bytes of RAM from 4 GiB up.
    pub memory_above_4g: u64,
    /// The date at virtual time 0, in seconds since 1970.
    pub date: i64,
    /// Where the serial port writes to.
    pub console: Box<dyn Write + Send>,
}

/// Who answers at a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Port {
    KeyboardData,
    KeyboardCommand,
    Rtc,
    Post,
    DebugExit,
    Serial,
    Pm,
    Reset,
    PciAddress,
    PciData,
}

struct Row {
    first: u16,
    last: u16,
    port: Port,
    /// The access size that the device takes whole; others are split into bytes.
    whole: Option<u8>,
}

const fn row(first: u16, last: u16, port: Port, whole: Option<u8>) -> Row {
    Row { first, last, port, whole }
}

const LAST_PM_PORT: u16 = pm::BASE + pm::SIZE - 1;

#[rustfmt::skip]
const PORTS: &[Row] = &[
    //  first         last           device                  whole
    row(0x060,        0x060,         Port::KeyboardData,     None),
    row(0x064,        0x064,         Port::KeyboardCommand,  None),
    row(0x070,        0x071,         Port::Rtc,              None),
    row(0x080,        0x080,         Port::Post,             None),
    row(0x0f4,        0x0f7,         Port::DebugExit,        Some(4)),
    row(0x3f8,        0x3ff,         Port::Serial,           None),
    row(pm::BASE,     LAST_PM_PORT,  Port::Pm,               None),
    row(0xcf8,        0xcf8,         Port::PciAddress,       Some(4)),
    row(pm::RESET_PORT, pm::RESET_PORT, Port::Reset,         None),
    row(0xcfc,        0xcff,         Port::PciData,          None),
];

fn find(port: u16) -> Option<&'static Row> {
    PORTS.iter().find(|row| (row.first..=row.last).contains(&port))
}

/// The peripherals.
#[derive(Debug)]
pub struct Peripherals {
    /// COM1.
    pub serial: Serial,
    rtc: Rtc,
    keyboard: I8042,
    pm: Pm,
    pci: Pci,
    post: u8,
}

impl Peripherals {
    /// The peripherals after reset.
    #[must_use]
    pub fn new(platform: Platform) -> Self {
        Self {
            serial: Serial::new(platform.console),
            rtc: Rtc::new(platform.date, platform.memory_below_4g, platform.memory_above_4g),
            keyboard: I8042::default(),
            pm: Pm::default(),
            pci: Pci::default(),
            post: 0,
        }
    }

    /// IN: all ones where nothing answers.
    pub fn io_read(&mut self, port: u16, size: u8, now: Nanos) -> u32 {
        match find(port).and_then(|row| row.whole.filter(|whole| *whole == size).map(|_| row.port)) {
            Some(Port::PciAddress) => self.pci.read_address(),
            Some(_) => all_ones(size) as u32,
            None => (0..u16::from(size.min(4))).fold(0, |value, i| {
                let byte = self.read_byte(port.wrapping_add(i), now);
                value | u32::from(byte) << (8 * i)
            }),
        }
    }

    fn read_byte(&mut self, port: u16, now: Nanos) -> u8 {
        let Some(row) = find(port) else { return 0xff };
        let offset = port - row.first;
        match row.port {
            Port::KeyboardData => self.keyboard.read_data(),
            Port::KeyboardCommand => self.keyboard.read_status(),
            Port::Rtc => self.rtc.read(offset, now),
            Port::Post => self.post,
            Port::Serial => self.serial.read(offset),
            Port::Pm => self.pm.read(offset, now),
            Port::Reset => self.pm.read_reset(),
            Port::PciData => self.pci.read_data(offset),
            Port::DebugExit | Port::PciAddress => 0xff,
        }
    }

    /// OUT: dropped where nothing answers.
    pub fn io_write(&mut self, port: u16, size: u8, value: u32, now: Nanos) -> Option<Request> {
        match find(port).and_then(|row| row.whole.filter(|whole| *whole == size).map(|_| row.port)) {
            Some(Port::PciAddress) => {
                self.pci.write_address(value);
                None
            }
            Some(Port::DebugExit) => Some(Request::DebugExit(value)),
            _ => (0..u16::from(size.min(4))).fold(None, |request, i| {
                let byte = (value >> (8 * i)) as u8;
                let asked = self.write_byte(port.wrapping_add(i), byte, now);
                request.or(asked)
            }),
        }
    }

    fn write_byte(&mut self, port: u16, value: u8, now: Nanos) -> Option<Request> {
        let row = find(port)?;
        let offset = port - row.first;
        match row.port {
            Port::KeyboardData => return self.keyboard.write_data(value),
            Port::KeyboardCommand => return self.keyboard.write_command(value),
            Port::Pm => return self.pm.write(offset, value, now),
            Port::Reset => return self.pm.write_reset(value),
            Port::DebugExit => return Some(Request::DebugExit(u32::from(value))),
            Port::Rtc => self.rtc.write(offset, value, now),
            Port::Post => self.post = value,
            Port::Serial => self.serial.write(offset, value),
            Port::PciAddress | Port::PciData => {} // narrow address writes; a bridge without writable registers
        }
        None
    }

    /// The levels of the ISA interrupt lines that the peripherals drive, one bit each.
    #[must_use]
    pub fn lines(&self) -> u16 {
        u16::from(self.keyboard.irq()) << irq::KEYBOARD
            | u16::from(self.serial.irq()) << irq::SERIAL
            | u16::from(self.rtc.irq()) << irq::RTC
            | u16::from(self.pm.irq()) << irq::SCI
    }

    /// When a peripheral wants to be ticked.
    #[must_use]
    pub fn next_event(&self) -> Option<Nanos> {
        [self.rtc.next_event(), self.pm.next_event()].into_iter().flatten().min()
    }

    /// Lets time pass.
    pub fn tick(&mut self, now: Nanos) {
        self.rtc.tick(now);
        self.pm.tick(now);
    }

    /// The last byte written to port 80H.
    #[must_use]
    pub fn post_code(&self) -> u8 {
        self.post
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peripherals() -> Peripherals {
        Peripherals::new(Platform {
            memory_below_4g: 1 << 30,
            memory_above_4g: 0,
            date: 0,
            console: Box::new(std::io::sink()),
        })
    }

    #[test]
    fn nothing_reads_all_ones() {
        let mut bus = peripherals();
        assert_eq!(bus.io_read(0x510, 1, 0), 0xff);
        assert_eq!(bus.io_read(0x510, 2, 0), 0xffff);
        assert_eq!(bus.io_read(0xffff, 4, 0), u32::MAX);
        assert_eq!(bus.io_write(0x510, 2, 5, 0), None);
    }

    #[test]
    fn wide_accesses_are_split() {
        let mut bus = peripherals();
        assert_eq!(bus.io_read(0x3fd, 2, 0), 0xb060);
        assert_eq!(bus.io_read(pm::BASE + pm::TIMER, 4, 1_000_000_000), 3_579_545);
        let sleep = u32::from(pm::SOFT_OFF) << 10 | 1 << 13;
        assert_eq!(bus.io_write(pm::BASE + pm::CONTROL, 2, sleep, 0), Some(Request::PowerOff));
    }

    #[test]
    fn pci_address_and_reset_control_share_a_dword() {
        let mut bus = peripherals();
        bus.io_write(0xcf8, 4, 0x8000_0000, 0);
        assert_eq!(bus.io_read(0xcf8, 4, 0), 0x8000_0000);
        bus.io_write(0xcf8, 1, 0x55, 0);
        assert_eq!(bus.io_read(0xcf8, 4, 0), 0x8000_0000);
        assert_eq!(bus.io_read(0xcfe, 2, 0), 0x1237);
        assert_eq!(bus.io_write(0xcf9, 1, 0x06, 0), Some(Request::Reset));
    }

    #[test]
    fn debug_exit_takes_every_width() {
        let mut bus = peripherals();
        assert_eq!(bus.io_write(0xf4, 1, 0x10, 0), Some(Request::DebugExit(0x10)));
        assert_eq!(bus.io_write(0xf4, 4, 0, 0), Some(Request::DebugExit(0)));
    }

    #[test]
    fn every_port_and_width_is_harmless() {
        let mut bus = peripherals();
        for port in 0..=u16::MAX {
            for size in [0, 1, 2, 3, 4, 8] {
                bus.io_read(port, size, 1);
                bus.io_write(port, size, 0xa5a5_a5a5, 1);
            }
        }
        bus.tick(u64::MAX);
        assert!(bus.next_event().is_none_or(|at| at > 1));
    }
}
