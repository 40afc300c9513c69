//! Multiboot 1. "Multiboot Specification version 0.6.96".

use super::elf::{self, Elf};
use super::entry::{self, EntryState};
use super::image::View;
use super::memory_map::{page_up, place, write, write_string};
use super::{Boot, BootError, Problem};
use vmcs12::cpu_state::gpr;

const HEADER_MAGIC: u32 = 0x1bad_b002;
const LOADER_MAGIC: u64 = 0x2bad_b002;
/// The header is in the first 8192 bytes, 4-byte aligned.
const SEARCH: usize = 8192;

/// Flags that a loader must know: page-aligned modules, memory information, a video mode.
const KNOWN_REQUIREMENTS: u32 = 0b111;
const REQUIREMENTS: u32 = 0xffff;
const VIDEO_MODE: u32 = 1 << 2;
const HAS_ADDRESSES: u32 = 1 << 16;

/// Flags of the information structure: what of it is valid.
mod info {
    pub const MEMORY: u32 = 1 << 0;
    pub const CMDLINE: u32 = 1 << 2;
    pub const MODULES: u32 = 1 << 3;
    pub const MEMORY_MAP: u32 = 1 << 6;
    pub const LOADER_NAME: u32 = 1 << 9;
}

const LOADER_NAME: &str = concat!("testudo ", env!("CARGO_PKG_VERSION"));
const INFO_SIZE: usize = 116;
const MEMORY_MAP: u64 = place::BOOT_INFO_TABLES;
const MODULES: u64 = MEMORY_MAP + 0x1000;
const MODULE_SIZE: u64 = 16;
const MAX_MODULES: u64 = 1024;

/// The file's multiboot header: where it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    at: u64,
    flags: u32,
}

/// Finds a header with a correct checksum.
pub fn find_header(file: &[u8]) -> Option<Header> {
    let searched = &file[..file.len().min(SEARCH)];
    let view = View::new(searched, "the multiboot header");
    (0..searched.len() as u64).step_by(4).find_map(|at| {
        let [magic, flags, checksum] = [at, at + 4, at + 8].map(|at| view.u32(at).ok());
        let is_header =
            magic? == HEADER_MAGIC && HEADER_MAGIC.wrapping_add(flags?).wrapping_add(checksum?) == 0;
        is_header.then_some(Header { at, flags: flags? })
    })
}

/// Loads kernel, modules and information.
pub fn load(boot: &Boot<'_>, header: Header) -> Result<EntryState, BootError> {
    let blame = |problem| boot.blame(problem);
    check_requirements(header).map_err(blame)?;
    let file = &boot.source.kernel.bytes;
    let (entry, end) = match header.flags & HAS_ADDRESSES {
        0 => load_elf(boot),
        _ => load_by_addresses(boot, header, View::new(file, "the image")),
    }
    .map_err(blame)?;
    let mut strings = Strings { next: place::CMDLINE };
    let modules = load_modules(boot, page_up(end), &mut strings)?;
    write_info(boot, modules, &mut strings).map_err(blame)?;
    let mut state = entry::protected_mode(boot, entry).map_err(blame)?;
    state.gpr[gpr::RAX] = LOADER_MAGIC;
    state.gpr[gpr::RBX] = place::BOOT_INFO;
    Ok(state)
}

fn check_requirements(header: Header) -> Result<(), Problem> {
    if header.flags & REQUIREMENTS & !KNOWN_REQUIREMENTS != 0 {
        return Err(Problem::Unsupported {
            what: "its multiboot header requires a feature that does not exist",
            remedy: "build it for multiboot 1",
        });
    }
    if header.flags & VIDEO_MODE != 0 {
        return Err(Problem::Unsupported {
            what: "its multiboot header requires a video mode, and there is no display",
            remedy: "build it for a serial console",
        });
    }
    Ok(())
}

fn load_elf(boot: &Boot<'_>) -> Result<(u64, u64), Problem> {
    let file = &boot.source.kernel.bytes;
    if !elf::is_elf(file) {
        return Err(Problem::Corrupt(
            "its multiboot header has no load addresses, and it is not an ELF file",
        ));
    }
    let elf = Elf::parse(file)?;
    Ok((elf.entry(), elf.load(boot)?))
}

/// "The address fields of Multiboot header". Returns the entry point and the end of what is loaded.
fn load_by_addresses(boot: &Boot<'_>, header: Header, view: View<'_>) -> Result<(u64, u64), Problem> {
    let field = |n: u64| view.u32(header.at + 12 + 4 * n).map(u64::from);
    let (header_address, load_address, load_end, bss_end, entry) =
        (field(0)?, field(1)?, field(2)?, field(3)?, field(4)?);
    let in_file = header_address
        .checked_sub(load_address)
        .and_then(|before| header.at.checked_sub(before))
        .ok_or(Problem::Corrupt("its multiboot header lies before its load address"))?;
    let length = match load_end {
        0 => view.len().saturating_sub(in_file),
        _ => load_end
            .checked_sub(load_address)
            .ok_or(Problem::Corrupt("its multiboot load end lies before its load address"))?,
    };
    let bytes = view.slice(in_file, length)?;
    let end = boot.ram.check(load_address, length)?;
    let end = boot.ram.check(load_address, bss_end.max(end) - load_address)?;
    write(boot.memory, load_address, bytes)?;
    Ok((entry, end))
}

/// Strings, one after the other.
struct Strings {
    next: u64,
}

impl Strings {
    fn add(&mut self, boot: &Boot<'_>, string: &str) -> Result<u32, Problem> {
        let (at, length) = (self.next, string.len() as u64 + 1);
        let room = place::CMDLINE_END - at;
        if length > room {
            return Err(Problem::CommandLine { length: length - 1, limit: room.saturating_sub(1) });
        }
        write_string(boot.memory, at, string)?;
        self.next += length;
        Ok(at as u32)
    }
}

/// Modules follow the kernel, page-aligned. Returns how many there are.
fn load_modules(boot: &Boot<'_>, from: u64, strings: &mut Strings) -> Result<u32, BootError> {
    let initrd = boot.source.initrd.map(|image| (image, image.name.as_str()));
    let modules = boot.source.modules.iter().map(|module| (&module.image, module.string.as_str()));
    let mut start = from;
    let mut count = 0;
    for (image, string) in initrd.into_iter().chain(modules) {
        let blame = |problem| BootError { file: image.name.clone(), problem };
        let end = boot.ram.check(start, image.bytes.len() as u64).map_err(blame)?;
        if count == MAX_MODULES {
            return Err(blame(TOO_MANY));
        }
        write(boot.memory, start, &image.bytes).map_err(blame)?;
        let entry = [start as u32, end as u32, strings.add(boot, string).map_err(blame)?, 0];
        write(boot.memory, MODULES + count * MODULE_SIZE, &words(&entry)).map_err(blame)?;
        start = page_up(end);
        count += 1;
    }
    Ok(count as u32)
}

const TOO_MANY: Problem =
    Problem::Unsupported { what: "one module more than fit", remedy: "pass at most 1024 modules" };

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// "Boot information format".
fn write_info(boot: &Boot<'_>, modules: u32, strings: &mut Strings) -> Result<(), Problem> {
    let cmdline = strings.add(boot, boot.source.cmdline)?;
    let name = strings.add(boot, LOADER_NAME)?;
    let map = memory_map(boot);
    write(boot.memory, MEMORY_MAP, &map)?;
    let flags = info::MEMORY | info::CMDLINE | info::MODULES | info::MEMORY_MAP | info::LOADER_NAME;
    let mut bytes = [0; INFO_SIZE];
    #[rustfmt::skip]
    let fields = [
        // offset  value
        (0,        flags),
        (4,        (place::EXTENDED_BIOS_DATA >> 10) as u32),               // KiB from 0
        (8,        (boot.ram.low_end.saturating_sub(place::HIGH) >> 10) as u32),        // KiB from 1 MiB
        (16,       cmdline),
        (20,       modules),
        (24,       MODULES as u32),
        (44,       map.len() as u32),
        (48,       MEMORY_MAP as u32),
        (64,       name),
    ];
    for (offset, value) in fields {
        bytes[offset..offset + 4].copy_from_slice(&u32::to_le_bytes(value));
    }
    write(boot.memory, place::BOOT_INFO, &bytes)
}

/// Entries with the size of what follows it, base, length and type.
fn memory_map(boot: &Boot<'_>) -> Vec<u8> {
    let entry = |range: super::memory_map::Range| {
        let mut bytes = words(&[20]);
        bytes.extend(range.start.to_le_bytes());
        bytes.extend((range.end - range.start).to_le_bytes());
        bytes.extend(words(&[range.kind as u32]));
        bytes
    };
    boot.ram.map().into_iter().flat_map(entry).collect()
}
