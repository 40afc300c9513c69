//! What firmware leaves in the first megabyte: the BIOS data area and the ACPI tables.
//! ACPI Specification, "ACPI Software Programming Model".

use super::Problem;
use super::memory_map::{LOW_RAM_END, place, write};
use crate::device::ioapic;
use crate::device::{bus, irq, lapic, pm};
use acpi_tables::aml::{
    self, AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Name, Package, Path, ResourceTemplate,
    Scope,
};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as Space, GAS};
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, Checksum};
use vm_memory::GuestMemoryMmap;

const OEM: [u8; 6] = *b"TSTUDO";
const OEM_TABLE: [u8; 8] = *b"TESTUDO ";
const OEM_REVISION: u32 = 1;
/// Length of the header that all tables but RSDP and FACS begin with.
const HEADER: u32 = 36;
/// The FACS is 64-byte aligned; the others follow suit.
const ALIGNMENT: u64 = 64;

/// There are 8259s besides the APICs. MADT flag PCAT_COMPAT.
const DUAL_8259: u32 = 1;
/// Devices on the ISA bus that no other table tells of. FADT boot architecture flag LEGACY_DEVICES; no flag says
/// that there is a keyboard controller, because no keyboard is plugged in.
const LEGACY_DEVICES: u16 = 1;
/// There is no VGA to probe for, nor any device with MSI.
const NO_VGA: u16 = 1 << 2;
const NO_MSI: u16 = 1 << 3;
/// Latencies above these say that the states C2 and C3 do not exist.
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;
/// Where the century is in the RTC's RAM.
const CENTURY: u8 = 0x32;

/// Writes the tables for so many processors; returns the address of the RSDP.
///
/// # Errors
/// RAM that is too small to hold them.
pub fn install(memory: &GuestMemoryMmap, processors: u32) -> Result<u64, Problem> {
    install_bios_data(memory)?;
    let rsdp = place::FIRMWARE;
    let mut tables = Tables { memory, next: rsdp + ALIGNMENT };
    let facs = tables.add(&FACS::new())?;
    let dsdt = tables.add(&dsdt(processors))?;
    let fadt = tables.add(&fadt(facs, dsdt).finalize())?;
    let madt = tables.add(&madt(processors))?;
    let rsdt = tables.add(&rsdt(&[fadt, madt]))?;
    let xsdt = tables.add(&xsdt(&[fadt, madt]))?;
    write(memory, rsdp, &root_pointer(rsdt, xsdt))?;
    Ok(rsdp)
}

/// What operating systems still look up in the BIOS data area: COM1, the extended area and the base memory's size.
fn install_bios_data(memory: &GuestMemoryMmap) -> Result<(), Problem> {
    #[rustfmt::skip]
    let words: [(u64, u16); 3] = [
        // offset  value
        (0x00,     0x3f8),
        (0x0e,     (place::EXTENDED_BIOS_DATA >> 4) as u16),
        (0x13,     (place::EXTENDED_BIOS_DATA >> 10) as u16),
    ];
    for (offset, value) in words {
        write(memory, place::BIOS_DATA + offset, &value.to_le_bytes())?;
    }
    // The extended area begins with its own size in KiB.
    write(memory, place::EXTENDED_BIOS_DATA, &[((place::VIDEO - place::EXTENDED_BIOS_DATA) >> 10) as u8])
}

/// Tables, one after the other.
struct Tables<'a> {
    memory: &'a GuestMemoryMmap,
    next: u64,
}

impl Tables<'_> {
    fn add(&mut self, table: &dyn Aml) -> Result<u64, Problem> {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let at = self.next;
        let end = at + bytes.len() as u64;
        if end > place::HIGH {
            return Err(Problem::Unsupported {
                what: "the firmware tables of so many processors do not fit below 1 MiB",
                remedy: "give fewer with --cpus",
            });
        }
        write(self.memory, at, &bytes)?;
        self.next = end.next_multiple_of(ALIGNMENT);
        Ok(at)
    }
}

fn table(signature: &[u8; 4], revision: u8) -> Sdt {
    Sdt::new(*signature, HEADER, revision, OEM, OEM_TABLE, OEM_REVISION)
}

/// Root System Description Pointer, revision 2: the first checksum covers the first 20 bytes.
fn root_pointer(rsdt: u64, xsdt: u64) -> [u8; 36] {
    let mut bytes = [0; 36];
    bytes[..8].copy_from_slice(b"RSD PTR ");
    bytes[9..15].copy_from_slice(&OEM);
    bytes[15] = 2;
    bytes[16..20].copy_from_slice(&(rsdt as u32).to_le_bytes());
    bytes[20..24].copy_from_slice(&36u32.to_le_bytes());
    bytes[24..32].copy_from_slice(&xsdt.to_le_bytes());
    bytes[8] = checksum(&bytes[..20]);
    bytes[32] = checksum(&bytes);
    bytes
}

fn checksum(bytes: &[u8]) -> u8 {
    let mut sum = Checksum::default();
    sum.append(bytes);
    sum.value()
}

fn rsdt(tables: &[u64]) -> Sdt {
    let mut rsdt = table(b"RSDT", 1);
    tables.iter().for_each(|address| rsdt.append_slice(&(*address as u32).to_le_bytes()));
    rsdt
}

fn xsdt(tables: &[u64]) -> XSDT {
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    tables.iter().for_each(|address| xsdt.add_entry(*address));
    xsdt
}

fn port(address: u16, bits: u8, access: AccessSize) -> GAS {
    GAS::new(Space::SystemIo, bits, 0, access, u64::from(address))
}

/// Fixed ACPI Description Table: where the fixed hardware is. Always in ACPI mode: there is no SMI command port.
fn fadt(facs: u64, dsdt: u64) -> FADTBuilder {
    let [event, control, timer] = [pm::BASE, pm::BASE + pm::CONTROL, pm::BASE + pm::TIMER];
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.firmware_ctrl = (facs as u32).into();
    fadt.dsdt = (dsdt as u32).into();
    fadt.x_dsdt = dsdt.into();
    fadt.sci_int = u16::from(irq::SCI).into();
    fadt.pm1a_evt_blk = u32::from(event).into();
    fadt.pm1a_cnt_blk = u32::from(control).into();
    fadt.pm_tmr_blk = u32::from(timer).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1_cnt_len = 2;
    fadt.pm_tmr_len = 4;
    fadt.x_pm1a_evt_blk = port(event, 32, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = port(control, 16, AccessSize::WordAccess);
    fadt.x_pm_tmr_blk = port(timer, 32, AccessSize::DwordAccess);
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.century = CENTURY;
    fadt.iapc_boot_arch = (LEGACY_DEVICES | NO_VGA | NO_MSI).into();
    fadt.reset_reg = port(pm::RESET_PORT, 8, AccessSize::ByteAccess);
    fadt.reset_value = pm::RESET_VALUE;
    fadt
}

/// Flags of an interrupt source: active high, level-triggered; or as the bus has it.
const ACTIVE_HIGH_LEVEL: u16 = 0b1101;
const AS_THE_BUS: u16 = 0;

/// Multiple APIC Description Table. APIC IDs beyond 254 have entries of another type.
fn madt(processors: u32) -> Sdt {
    let mut madt = table(b"APIC", 4);
    madt.append_slice(&(lapic::DEFAULT_BASE as u32).to_le_bytes());
    madt.append_slice(&DUAL_8259.to_le_bytes());
    for id in 0..processors {
        madt.append_slice(&processor_entry(id));
    }
    madt.append_slice(&[1, 12, 0, 0]);
    madt.append_slice(&(ioapic::BASE as u32).to_le_bytes());
    madt.append_slice(&0u32.to_le_bytes());
    madt.append_slice(&override_entry(irq::TIMER, AS_THE_BUS));
    madt.append_slice(&override_entry(irq::SCI, ACTIVE_HIGH_LEVEL));
    // NMI on LINT1 of every processor.
    madt.append_slice(&[4, 6, 0xff, 0, 0, 1]);
    madt
}

fn processor_entry(id: u32) -> Vec<u8> {
    match u8::try_from(id) {
        Ok(id) if id < 255 => vec![0, 8, id, id, 1, 0, 0, 0],
        _ => [&[9, 16, 0, 0][..], &id.to_le_bytes(), &1u32.to_le_bytes(), &id.to_le_bytes()].concat(),
    }
}

fn override_entry(irq: u8, flags: u16) -> Vec<u8> {
    let pin = bus::pin_of(irq) as u32;
    [&[2, 10, 0, irq][..], &pin.to_le_bytes(), &flags.to_le_bytes()].concat()
}

/// Differentiated System Description Table: processors, the PCI host bridge, COM1 and soft off.
fn dsdt(processors: u32) -> Sdt {
    let mut body = Vec::new();
    soft_off().to_aml_bytes(&mut body);
    append_system_bus(&mut body, processors);
    let mut dsdt = table(b"DSDT", 2);
    dsdt.append_slice(&body);
    dsdt
}

fn soft_off() -> Name {
    let kind = pm::SOFT_OFF;
    Name::new(Path::new("_S5_"), &Package::new(vec![&kind, &kind, &aml::ZERO, &aml::ZERO]))
}

fn append_system_bus(body: &mut Vec<u8>, processors: u32) {
    let processors: Vec<Processor> = (0..processors).map(Processor).collect();
    let bridge = HostBridge;
    let mut devices: Vec<&dyn Aml> = processors.iter().map(|processor| processor as &dyn Aml).collect();
    devices.push(&bridge);
    Scope::new(Path::new("_SB_"), devices).to_aml_bytes(body);
}

/// A processor device; its unique ID is that of its MADT entry.
struct Processor(u32);

impl Aml for Processor {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let name = format!("C{:03X}", self.0);
        Device::new(
            Path::new(&name),
            vec![&Name::new(Path::new("_HID"), &"ACPI0007"), &Name::new(Path::new("_UID"), &self.0)],
        )
        .to_aml_bytes(sink);
    }
}

/// The PCI root bus and what it passes on: ports but those of the configuration mechanism, which are its own, and
/// the memory between RAM and the APICs.
struct HostBridge;

impl Aml for HostBridge {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        Device::new(
            Path::new("PCI0"),
            vec![
                &Name::new(Path::new("_HID"), &EISAName::new("PNP0A03")),
                &Name::new(Path::new("_UID"), &aml::ZERO),
                &bridge_resources(),
            ],
        )
        .to_aml_bytes(sink);
    }
}

fn bridge_resources() -> Name {
    let uncached = AddressSpaceCacheable::NotCacheable;
    Name::new(
        Path::new("_CRS"),
        &ResourceTemplate::new(vec![
            &AddressSpace::new_bus_number(0u16, 0xff),
            &IO::new(CONFIGURATION_PORTS, CONFIGURATION_PORTS, 1, 8),
            &AddressSpace::new_io(0u16, CONFIGURATION_PORTS - 1, None),
            &AddressSpace::new_io(CONFIGURATION_PORTS + 8, u16::MAX, None),
            &AddressSpace::new_memory(uncached, true, DEVICE_MEMORY, DEVICE_MEMORY_LAST, None),
        ]),
    )
}

const CONFIGURATION_PORTS: u16 = 0xcf8;
const DEVICE_MEMORY: u32 = LOW_RAM_END as u32;
const DEVICE_MEMORY_LAST: u32 = ioapic::BASE as u32 - 1;

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    fn installed(processors: u32) -> (GuestMemoryMmap, u64) {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).expect("2 MiB");
        let rsdp = install(&memory, processors).expect("room");
        (memory, rsdp)
    }

    fn read<const N: usize>(memory: &GuestMemoryMmap, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        memory.read_slice(&mut bytes, GuestAddress(at)).expect("RAM");
        bytes
    }

    fn u32_at(memory: &GuestMemoryMmap, at: u64) -> u32 {
        u32::from_le_bytes(read(memory, at))
    }

    fn u64_at(memory: &GuestMemoryMmap, at: u64) -> u64 {
        u64::from_le_bytes(read(memory, at))
    }

    fn whole(memory: &GuestMemoryMmap, at: u64) -> Vec<u8> {
        let mut bytes = vec![0; u32_at(memory, at + 4) as usize];
        memory.read_slice(&mut bytes, GuestAddress(at)).expect("RAM");
        bytes
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    /// The tables that the XSDT lists, by signature.
    fn find(memory: &GuestMemoryMmap, rsdp: u64, signature: &[u8; 4]) -> u64 {
        let xsdt = u64_at(memory, rsdp + 24);
        let entries = (u64::from(u32_at(memory, xsdt + 4)) - 36) / 8;
        let tables = (0..entries).map(|i| u64_at(memory, xsdt + 36 + 8 * i));
        tables.into_iter().find(|at| read::<4>(memory, *at) == *signature).expect("a table")
    }

    #[test]
    fn pointers_and_checksums() {
        let (memory, rsdp) = installed(2);
        assert_eq!(rsdp % 16, 0);
        let root: [u8; 36] = read(&memory, rsdp);
        assert_eq!((&root[..8], sum(&root[..20]), sum(&root)), (&b"RSD PTR "[..], 0, 0));
        let rsdt = u64::from(u32_at(&memory, rsdp + 16));
        assert_eq!(read::<4>(&memory, rsdt), *b"RSDT");
        let fadt = find(&memory, rsdp, b"FACP");
        assert_eq!(u64::from(u32_at(&memory, rsdt + 36)), fadt);
        let dsdt = u64_at(&memory, fadt + 140);
        assert_eq!(u64::from(u32_at(&memory, fadt + 40)), dsdt);
        let facs = u64::from(u32_at(&memory, fadt + 36));
        assert_eq!((read::<4>(&memory, facs), facs % 64), (*b"FACS", 0));
        let xsdt = u64_at(&memory, rsdp + 24);
        for at in [rsdt, xsdt, fadt, dsdt, find(&memory, rsdp, b"APIC")] {
            assert_eq!(sum(&whole(&memory, at)), 0, "{:?}", read::<4>(&memory, at));
        }
    }

    #[test]
    fn the_madt_has_each_processor_and_the_overrides() {
        let (memory, rsdp) = installed(300);
        let madt = whole(&memory, find(&memory, rsdp, b"APIC"));
        let mut kinds = [0; 16];
        let mut at = 44;
        while at < madt.len() {
            kinds[usize::from(madt[at])] += 1;
            at += usize::from(madt[at + 1]);
        }
        assert_eq!(at, madt.len());
        assert_eq!((kinds[0], kinds[9], kinds[1], kinds[2], kinds[4]), (255, 45, 1, 2, 1));
    }

    #[test]
    fn too_many_processors_are_refused() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).expect("2 MiB");
        assert!(matches!(install(&memory, 4096), Err(Problem::Unsupported { .. })));
    }
}
