//! All devices of a machine, and how interrupts travel between them.

use super::frequency::Frequency;
use super::ioapic::{self, IoApic};
use super::lapic::base::{ApicBase, Role};
use super::lapic::{self, Effect, GeneralProtection, LocalApic, Signals, deliver};
use super::pic::{Half, Pic};
use super::pit::Pit;
use super::{Nanos, Peripherals, Platform, Request, all_ones, irq};

/// IA32_APIC_BASE.
const IA32_APIC_BASE: u32 = 0x1b;

/// What the devices must know of the machine.
pub struct Machine {
    /// Number of processors; each APIC ID is the processor's index.
    pub processors: u32,
    /// What the APIC timers count: the crystal of CPUID leaf 15H where the processor has one, since guests
    /// derive the timer's frequency from it instead of measuring it.
    pub apic_timer: Frequency,
    /// Does CPUID offer x2APIC mode?
    pub x2apic: bool,
    /// The physical-address width that CPUID offers.
    pub physical_width: u32,
    /// The rest.
    pub platform: Platform,
}

/// Who answers at a port, if not a peripheral.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Chip {
    Pic(Half),
    Elcr(Half),
    Pit,
    SystemControl,
}

#[rustfmt::skip]
const PORTS: &[(u16, u16, Chip)] = &[
    // first  last   chip
    (0x020,  0x021,  Chip::Pic(Half::Master)),
    (0x040,  0x043,  Chip::Pit),
    (0x061,  0x061,  Chip::SystemControl),
    (0x0a0,  0x0a1,  Chip::Pic(Half::Slave)),
    (0x4d0,  0x4d0,  Chip::Elcr(Half::Master)),
    (0x4d1,  0x4d1,  Chip::Elcr(Half::Slave)),
];

fn find(port: u16) -> Option<(Chip, u16)> {
    let (first, _, chip) = PORTS.iter().find(|(first, last, _)| (*first..=*last).contains(&port))?;
    Some((*chip, port - first))
}

/// The pin of the I/O APIC that an ISA interrupt is wired to. The MADT tells of the exception.
#[must_use]
pub fn pin_of(irq: u8) -> usize {
    if irq == irq::TIMER { 2 } else { usize::from(irq) }
}

/// All devices.
#[derive(Debug)]
pub struct Devices {
    /// Everything that is neither interrupt controller nor timer.
    pub peripherals: Peripherals,
    pic: Pic,
    pit: Pit,
    ioapic: IoApic,
    apics: Vec<LocalApic>,
    /// The lines of the peripherals as the controllers know them.
    lines: u16,
}

impl Devices {
    /// The devices as firmware leaves them: reset, and the boot processor's APIC in virtual-wire mode.
    #[must_use]
    pub fn new(machine: Machine) -> Self {
        let apic = |id| {
            let role = if id == 0 { Role::Bootstrap } else { Role::Application };
            LocalApic::new(
                id,
                ApicBase::new(role, machine.physical_width, machine.x2apic),
                machine.apic_timer,
            )
        };
        let mut apics: Vec<LocalApic> = (0..machine.processors.max(1)).map(apic).collect();
        apics[0].set_virtual_wire();
        let mut pic = Pic::default();
        pic.write_elcr(Half::Slave, 1 << (irq::SCI - 8)); // the SCI is a level
        Self {
            peripherals: Peripherals::new(machine.platform),
            pic,
            pit: Pit::default(),
            ioapic: IoApic::default(),
            apics,
            lines: 0,
        }
    }

    /// The local APIC of processor `cpu`.
    #[must_use]
    pub fn apic(&self, cpu: usize) -> &LocalApic {
        &self.apics[cpu]
    }

    /// The local APIC of processor `cpu`, to change what no other device sees: CR8, the TSC deadline, INIT.
    pub fn apic_mut(&mut self, cpu: usize) -> &mut LocalApic {
        &mut self.apics[cpu]
    }

    /// IN: all ones where nothing answers.
    pub fn io_read(&mut self, port: u16, size: u8, now: Nanos) -> u32 {
        self.tick(now);
        if find(port).is_none() {
            let value = self.peripherals.io_read(port, size, now);
            self.update_lines();
            return value;
        }
        let value = (0..u16::from(size.min(4)))
            .fold(0, |value, i| u32::from(self.read_byte(port.wrapping_add(i), now)) << (8 * i) | value);
        self.update_external_interrupt();
        value
    }

    fn read_byte(&mut self, port: u16, now: Nanos) -> u8 {
        match find(port) {
            Some((Chip::Pic(half), offset)) => self.pic.read(half, offset),
            Some((Chip::Elcr(half), _)) => self.pic.read_elcr(half),
            Some((Chip::Pit, offset)) => self.pit.read(offset, now),
            Some((Chip::SystemControl, _)) => self.pit.read_port_61(now),
            None => 0xff,
        }
    }

    /// OUT: dropped where nothing answers.
    pub fn io_write(&mut self, port: u16, size: u8, value: u32, now: Nanos) -> Option<Request> {
        self.tick(now);
        if find(port).is_none() {
            let request = self.peripherals.io_write(port, size, value, now);
            self.update_lines();
            return request;
        }
        for i in 0..u16::from(size.min(4)) {
            self.write_byte(port.wrapping_add(i), (value >> (8 * i)) as u8, now);
        }
        self.update_external_interrupt();
        None
    }

    fn write_byte(&mut self, port: u16, value: u8, now: Nanos) {
        match find(port) {
            Some((Chip::Pic(half), offset)) => self.pic.write(half, offset, value),
            Some((Chip::Elcr(half), _)) => self.pic.write_elcr(half, value),
            Some((Chip::SystemControl, _)) => self.pit.write_port_61(value, now),
            Some((Chip::Pit, offset)) => {
                self.pit.write(offset, value, now);
                self.set_line(irq::TIMER, self.pit.irq(now));
            }
            None => {}
        }
    }

    /// A read from memory that is not RAM, by processor `cpu`: all ones where nothing answers.
    pub fn mmio_read(&mut self, cpu: usize, address: u64, size: u8, now: Nanos) -> u64 {
        if self.apics[cpu].decodes(address) {
            return self.apics[cpu].read_memory(address % lapic::SIZE, size, now);
        }
        match ioapic_offset(address) {
            Some(offset) => u64::from(self.ioapic.read(offset)) & all_ones(size),
            None => all_ones(size),
        }
    }

    /// A write to memory that is not RAM, by processor `cpu`: dropped where nothing answers.
    pub fn mmio_write(&mut self, cpu: usize, address: u64, size: u8, value: u64, now: Nanos) {
        if self.apics[cpu].decodes(address) {
            let effect = self.apics[cpu].write_memory(address % lapic::SIZE, size, value, cpu, now);
            self.apply(effect);
        } else if let (Some(offset), 4..) = (ioapic_offset(address), size) {
            let Self { ioapic, apics, .. } = self;
            ioapic.write(offset, value as u32, |message| deliver(apics, message));
        }
    }

    /// RDMSR of IA32_APIC_BASE or of 800H to 8FFH.
    ///
    /// # Errors
    /// #GP(0).
    pub fn read_msr(&mut self, cpu: usize, msr: u32, now: Nanos) -> Result<u64, GeneralProtection> {
        match msr {
            IA32_APIC_BASE => Ok(self.apics[cpu].base().value()),
            _ => self.apics[cpu].read_msr(msr, now),
        }
    }

    /// WRMSR of IA32_APIC_BASE or of 800H to 8FFH.
    ///
    /// # Errors
    /// #GP(0).
    pub fn write_msr(
        &mut self,
        cpu: usize,
        msr: u32,
        value: u64,
        now: Nanos,
    ) -> Result<(), GeneralProtection> {
        if msr == IA32_APIC_BASE {
            return self.apics[cpu].set_base(value);
        }
        let effect = self.apics[cpu].write_msr(msr, value, cpu, now)?;
        self.apply(effect);
        Ok(())
    }

    fn apply(&mut self, effect: Effect) {
        let Self { ioapic, apics, .. } = self;
        match effect {
            Effect::None => {}
            Effect::Send(message) => deliver(apics, message),
            Effect::EndOfLevel(vector) => ioapic.end_of_interrupt(vector, |message| deliver(apics, message)),
        }
    }

    /// Drives an ISA interrupt line to both controllers.
    fn set_line(&mut self, irq: u8, high: bool) {
        let Self { ioapic, apics, pic, .. } = self;
        pic.set_line(irq, high);
        ioapic.set_line(pin_of(irq), high, |message| deliver(apics, message));
    }

    fn update_lines(&mut self) {
        let lines = self.peripherals.lines();
        let mut changed = lines ^ std::mem::replace(&mut self.lines, lines);
        if changed == 0 {
            return;
        }
        while changed != 0 {
            let irq = changed.trailing_zeros() as u8;
            self.set_line(irq, lines & 1 << irq != 0);
            changed &= changed - 1;
        }
        self.update_external_interrupt();
    }

    /// The 8259's INTR drives LINT0 of every processor.
    fn update_external_interrupt(&mut self) {
        let high = self.pic.interrupt();
        self.apics.iter_mut().for_each(|apic| apic.set_lint0(high));
    }

    /// Input for the serial port; returns how many bytes it took.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let taken = self.peripherals.serial.receive(bytes);
        self.update_lines();
        taken
    }

    /// Shows what the serial port has not shown yet: a line that is not finished.
    ///
    /// # Errors
    /// The console's, also those of earlier writes.
    pub fn show(&mut self) -> std::io::Result<()> {
        self.peripherals.serial.flush()
    }

    fn external_interrupt(&self, cpu: usize) -> bool {
        self.pic.interrupt() && self.apics[cpu].passes_external_interrupts()
    }

    /// Does an interrupt wait for processor `cpu`, by its priority?
    #[must_use]
    pub fn has_interrupt(&self, cpu: usize) -> bool {
        self.external_interrupt(cpu) || self.apics[cpu].interrupt().is_some()
    }

    /// The vector that [`Devices::acknowledge`] would return now.
    #[must_use]
    pub fn pending_vector(&self, cpu: usize) -> Option<u8> {
        if self.external_interrupt(cpu) {
            Some(self.pic.pending_vector())
        } else {
            self.apics[cpu].interrupt()
        }
    }

    /// The interrupt-acknowledge cycle of processor `cpu`: the vector that it takes.
    pub fn acknowledge(&mut self, cpu: usize) -> Option<u8> {
        if !self.external_interrupt(cpu) {
            return self.apics[cpu].acknowledge();
        }
        let vector = self.pic.acknowledge();
        self.update_external_interrupt();
        Some(vector)
    }

    /// NMI, INIT and start-up IPIs for processor `cpu`; they are then gone.
    pub fn take_signals(&mut self, cpu: usize) -> Signals {
        self.apics[cpu].take_signals()
    }

    /// When a device wants to be ticked.
    #[must_use]
    pub fn next_event(&self) -> Option<Nanos> {
        let apics = self.apics.iter().filter_map(LocalApic::next_event).min();
        [apics, self.pit.next_event(), self.peripherals.next_event()].into_iter().flatten().min()
    }

    /// Lets time pass: raises the interrupts whose time has come.
    pub fn tick(&mut self, now: Nanos) {
        if self.next_event().is_none_or(|at| at > now) {
            return;
        }
        self.apics.iter_mut().for_each(|apic| apic.tick(now));
        if self.pit.tick(now) {
            self.set_line(irq::TIMER, false);
            self.set_line(irq::TIMER, true);
            self.update_external_interrupt();
        }
        self.peripherals.tick(now);
        self.update_lines();
    }
}

fn ioapic_offset(address: u64) -> Option<u64> {
    address.checked_sub(ioapic::BASE).filter(|offset| *offset < ioapic::SIZE)
}

#[cfg(test)]
mod tests;
