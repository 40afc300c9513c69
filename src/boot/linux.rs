//! bzImage: the 64-bit boot protocol. Linux, "The Linux/x86 Boot Protocol".

use super::elf::Elf;
use super::entry::{self, EntryState};
use super::image::View;
use super::memory_map::{Ram, page_up, place, write, write_string};
use super::{Boot, BootError, Problem, vmlinux};
use linux_loader::loader::bootparam::{
    KASLR_FLAG, LOADED_HIGH, XLF_CAN_BE_LOADED_ABOVE_4G, XLF_KERNEL_64, boot_e820_entry, boot_params,
    setup_header,
};
use vm_memory::{ByteValued, Bytes, GuestAddress};
use vmcs12::cpu_state::gpr;

/// Where the setup header is in the file, and the end of the zero page's part for it.
const HEADER: u64 = 0x1f1;
/// The signature "HdrS".
const MAGIC: u32 = 0x5372_6448;
const MAGIC_AT: u64 = 0x202;
/// A short jump over the header: its operand, from 202H on, tells where the header ends.
const JUMP_OPERAND_AT: u64 = 0x201;
const SECTOR: u64 = 512;
/// The protocol that introduced the 64-bit entry point.
const FIRST_VERSION: u16 = 0x020c;
/// The 64-bit entry point, from the start of the protected-mode part.
const ENTRY_64: u64 = 0x200;
/// "type_of_loader: undefined".
const LOADER_UNDEFINED: u8 = 0xff;
/// The limit of protocols that do not tell one.
const DEFAULT_CMDLINE_SIZE: u32 = 255;

/// Does the file carry a Linux setup header?
pub fn is_bzimage(file: &[u8]) -> bool {
    View::new(file, "header").u32(MAGIC_AT) == Ok(MAGIC)
}

/// Loads kernel, command line, initial RAM disk and zero page.
///
/// What the kernel's own decompressor would do on the guest's processor is done here where the compression is
/// known: the executable inside is loaded, and started at the entry point that the decompressor would jump to.
/// It is then at the address that it is linked to, as with `nokaslr`.
pub fn load(boot: &Boot<'_>) -> Result<EntryState, BootError> {
    let blame = |problem| boot.blame(problem);
    let file = &boot.source.kernel.bytes;
    let (header, payload) = parse(file).map_err(blame)?;
    let (entry, loaded) = load_kernel(boot, &header, payload).map_err(blame)?;
    write_cmdline(boot, &header).map_err(blame)?;
    let initrd = load_initrd(boot, &header, loaded)?;
    write_zero_page(boot, header, initrd).map_err(blame)?;
    let mut state = entry::long_mode(boot, entry).map_err(blame)?;
    state.gpr[gpr::RSI] = place::BOOT_INFO;
    Ok(state)
}

/// The setup header, zero beyond its end, and the protected-mode part of the file.
fn parse(file: &[u8]) -> Result<(setup_header, &[u8]), Problem> {
    let view = View::new(file, "the setup header");
    let end = MAGIC_AT + u64::from(view.slice(JUMP_OPERAND_AT, 1)?[0]);
    let bytes = view.slice(HEADER, end - HEADER)?;
    let mut header = setup_header::default();
    let length = bytes.len().min(header.as_slice().len());
    header.as_mut_slice()[..length].copy_from_slice(&bytes[..length]);
    let (version, loadflags, xloadflags) = (header.version, header.loadflags, header.xloadflags);
    if version < FIRST_VERSION || xloadflags & XLF_KERNEL_64 == 0 || loadflags & LOADED_HIGH == 0 {
        return Err(Problem::Unsupported {
            what: "a Linux kernel without 64-bit entry point",
            remedy: "pass an x86-64 kernel of version 3.8 or later",
        });
    }
    let sectors = if header.setup_sects == 0 { 4 } else { u64::from(header.setup_sects) };
    let setup = (sectors + 1) * SECTOR;
    let rest = view.named("the setup code").len().saturating_sub(setup);
    let payload = view.slice(setup, rest)?;
    check_complete(view, &header, setup)?;
    Ok((header, payload))
}

/// The header tells how long the kernel is: in 16-byte units, and where its compressed part ends.
fn check_complete(view: View<'_>, header: &setup_header, setup: u64) -> Result<(), Problem> {
    let length = u64::from(header.syssize) * 16;
    let compressed = u64::from(header.payload_offset) + u64::from(header.payload_length);
    // syssize is rounded up to 16 bytes.
    let needed = length.saturating_sub(15).max(compressed).max(ENTRY_64 + 1);
    view.named("the kernel").slice(setup, needed).map(|_| ())
}

/// A relocatable kernel goes where it wants to be in the end, others to 1 MiB.
fn load_address(header: &setup_header) -> u64 {
    let preferred = header.pref_address;
    if header.relocatable_kernel != 0 && preferred >= place::HIGH { preferred } else { place::HIGH }
}

/// Loads the kernel; returns its entry point and the end of the memory that it uses before it knows the memory map.
fn load_kernel(boot: &Boot<'_>, header: &setup_header, payload: &[u8]) -> Result<(u64, u64), Problem> {
    let start = load_address(header);
    let runs_to = boot.ram.check(start.max(header.pref_address), u64::from(header.init_size))?;
    let (entry, end) = match vmlinux::unpack(compressed_part(header, payload), boot.ram.low_end)? {
        Some(vmlinux) => load_executable(boot, &vmlinux)?,
        None => load_compressed(boot, header, payload, start)?,
    };
    Ok((entry, page_up(end.max(runs_to))))
}

/// The part of the kernel that its decompressor unpacks; nothing if the header does not tell.
fn compressed_part<'a>(header: &setup_header, payload: &'a [u8]) -> &'a [u8] {
    let start = header.payload_offset as usize;
    let end = start.saturating_add(header.payload_length as usize);
    payload.get(start..end).unwrap_or_default()
}

fn load_executable(boot: &Boot<'_>, vmlinux: &[u8]) -> Result<(u64, u64), Problem> {
    let elf = Elf::parse(vmlinux)?;
    Ok((elf.entry(), elf.load(boot)?))
}

/// Copies the kernel with its decompressor.
fn load_compressed(
    boot: &Boot<'_>,
    header: &setup_header,
    payload: &[u8],
    start: u64,
) -> Result<(u64, u64), Problem> {
    let alignment = u64::from(header.kernel_alignment);
    if header.relocatable_kernel != 0 && !(alignment.is_power_of_two() && start.is_multiple_of(alignment)) {
        return Err(Problem::Corrupt("its preferred address does not have its alignment"));
    }
    let end = boot.ram.check(start, payload.len() as u64)?;
    write(boot.memory, start, payload)?;
    Ok((start + ENTRY_64, end))
}

fn write_cmdline(boot: &Boot<'_>, header: &setup_header) -> Result<(), Problem> {
    let cmdline = boot.source.cmdline;
    let limit = if header.cmdline_size == 0 { DEFAULT_CMDLINE_SIZE } else { header.cmdline_size };
    let limit = u64::from(limit).min(place::CMDLINE_END - place::CMDLINE - 1);
    if cmdline.len() as u64 > limit {
        return Err(Problem::CommandLine { length: cmdline.len() as u64, limit });
    }
    write_string(boot.memory, place::CMDLINE, cmdline)
}

/// The initial RAM disk goes as high as the kernel allows. Returns where and how long it is.
fn load_initrd(boot: &Boot<'_>, header: &setup_header, floor: u64) -> Result<(u64, u64), BootError> {
    let Some(initrd) = boot.source.initrd else { return Ok((0, 0)) };
    let length = initrd.bytes.len() as u64;
    let limit = match header.xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G {
        0 => u64::from(header.initrd_addr_max) + 1,
        _ => u64::MAX,
    };
    let placed = boot.ram.place_high(length, floor, limit);
    let written = placed.and_then(|start| write(boot.memory, start, &initrd.bytes).map(|()| (start, length)));
    written.map_err(|problem| BootError { file: initrd.name.clone(), problem })
}

fn write_zero_page(boot: &Boot<'_>, header: setup_header, initrd: (u64, u64)) -> Result<(), Problem> {
    let (start, length) = initrd;
    let mut params = boot_params { hdr: header, acpi_rsdp_addr: boot.rsdp, ..Default::default() };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.loadflags &= !KASLR_FLAG; // for the decompressor to set
    params.hdr.cmd_line_ptr = place::CMDLINE as u32;
    params.hdr.ramdisk_image = start as u32;
    params.hdr.ramdisk_size = length as u32;
    params.ext_ramdisk_image = (start >> 32) as u32;
    params.ext_ramdisk_size = (length >> 32) as u32;
    write_memory_map(&mut params, boot.ram);
    boot.memory.write_obj(params, GuestAddress(place::BOOT_INFO)).map_err(|_| boot.ram.too_large(place::HIGH))
}

fn write_memory_map(params: &mut boot_params, ram: Ram) {
    let map = ram.map();
    params.e820_entries = map.len() as u8;
    let mut table = params.e820_table;
    for (entry, range) in table.iter_mut().zip(map) {
        *entry =
            boot_e820_entry { addr: range.start, size: range.end - range.start, r#type: range.kind as u32 };
    }
    params.e820_table = table;
}
