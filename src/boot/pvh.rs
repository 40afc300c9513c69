//! ELF with a PVH note. Xen, "x86/HVM direct boot ABI".

use super::elf::Elf;
use super::entry::{self, EntryState};
use super::memory_map::{page_up, place, write, write_string};
use super::{Boot, BootError, Problem};
use crate::config::Image;
use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{Bytes, GuestAddress};
use vmcs12::cpu_state::gpr;

/// The version that has a memory map.
const VERSION: u32 = 1;
const MEMORY_MAP: u64 = place::BOOT_INFO_TABLES;
const MODULES: u64 = MEMORY_MAP + 0x1000;
/// Modules that the list has room for.
const MAX_MODULES: usize = 1024;

/// Loads kernel, modules and start info.
pub fn load(boot: &Boot<'_>) -> Result<EntryState, BootError> {
    let blame = |problem| boot.blame(problem);
    let elf = Elf::parse(&boot.source.kernel.bytes).map_err(blame)?;
    let entry = elf.pvh_entry().map_err(blame)?.ok_or_else(|| blame(NO_ENTRY))?;
    let end = elf.load(boot).map_err(blame)?;
    let mut strings = Strings::default();
    let cmdline = strings.add(boot, boot.source.cmdline).map_err(blame)?;
    let modules = load_modules(boot, page_up(end), &mut strings)?;
    let start_info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: VERSION,
        flags: 0,
        nr_modules: modules.len() as u32,
        modlist_paddr: if modules.is_empty() { 0 } else { MODULES },
        cmdline_paddr: cmdline,
        rsdp_paddr: boot.rsdp,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: write_memory_map(boot).map_err(blame)?,
        reserved: 0,
    };
    store(boot, place::BOOT_INFO, start_info).map_err(blame)?;
    let mut state = entry::protected_mode(boot, entry).map_err(blame)?;
    state.gpr[gpr::RBX] = place::BOOT_INFO;
    Ok(state)
}

const NO_ENTRY: Problem = Problem::Unsupported {
    what: "an ELF file without a PVH note or a multiboot header",
    remedy: "pass a kernel built with CONFIG_PVH, a multiboot kernel, or the bzImage",
};

/// Command line and modules' strings, one after the other.
#[derive(Default)]
struct Strings {
    used: u64,
}

impl Strings {
    fn add(&mut self, boot: &Boot<'_>, string: &str) -> Result<u64, Problem> {
        let at = place::CMDLINE + self.used;
        let (length, room) = (string.len() as u64 + 1, place::CMDLINE_END - at);
        if length > room {
            return Err(Problem::CommandLine { length: length - 1, limit: room.saturating_sub(1) });
        }
        write_string(boot.memory, at, string)?;
        self.used += length;
        Ok(at)
    }
}

fn store<T: vm_memory::ByteValued>(boot: &Boot<'_>, at: u64, value: T) -> Result<(), Problem> {
    boot.memory.write_obj(value, GuestAddress(at)).map_err(|_| boot.ram.too_large(place::HIGH))
}

fn write_memory_map(boot: &Boot<'_>) -> Result<u32, Problem> {
    let map = boot.ram.map();
    for (i, range) in map.iter().enumerate() {
        let entry = hvm_memmap_table_entry {
            addr: range.start,
            size: range.end - range.start,
            type_: range.kind as u32,
            reserved: 0,
        };
        store(boot, MEMORY_MAP + (i * size_of::<hvm_memmap_table_entry>()) as u64, entry)?;
    }
    Ok(map.len() as u32)
}

/// The RAM disk is the first module. All go as high as possible, downwards.
fn load_modules(
    boot: &Boot<'_>,
    floor: u64,
    strings: &mut Strings,
) -> Result<Vec<hvm_modlist_entry>, BootError> {
    let initrd = boot.source.initrd.map(|image| (image, ""));
    let modules = boot.source.modules.iter().map(|module| (&module.image, module.string.as_str()));
    let mut limit = u64::MAX;
    let mut list = Vec::new();
    for (image, string) in initrd.into_iter().chain(modules) {
        let blame = |problem| BootError { file: image.name.clone(), problem };
        let entry = load_module(boot, image, floor, limit).map_err(blame)?;
        let entry = hvm_modlist_entry { cmdline_paddr: strings.add(boot, string).map_err(blame)?, ..entry };
        if list.len() == MAX_MODULES {
            return Err(blame(TOO_MANY));
        }
        store(boot, MODULES + (list.len() * size_of::<hvm_modlist_entry>()) as u64, entry).map_err(blame)?;
        limit = entry.paddr;
        list.push(entry);
    }
    Ok(list)
}

const TOO_MANY: Problem =
    Problem::Unsupported { what: "one module more than fit", remedy: "pass at most 1024 modules" };

fn load_module(boot: &Boot<'_>, image: &Image, floor: u64, limit: u64) -> Result<hvm_modlist_entry, Problem> {
    let size = image.bytes.len() as u64;
    let paddr = boot.ram.place_high(size, floor, limit)?;
    write(boot.memory, paddr, &image.bytes)?;
    Ok(hvm_modlist_entry { paddr, size, cmdline_paddr: 0, reserved: 0 })
}
