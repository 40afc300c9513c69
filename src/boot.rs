//! From files to a machine that is ready to run: kernels, modules, firmware tables in guest RAM, and the state in
//! which the boot processor starts.
//!
//! Files are untrusted: whatever is in them, [`load`] answers with an entry state or a [`BootError`]. The kernel's
//! format is found by its content.

pub mod acpi;
mod elf;
pub mod entry;
mod error;
mod image;
mod linux;
mod memory_map;
mod multiboot;
mod pvh;
mod vmlinux;

pub use entry::{DescriptorTable, EntryState};
pub use error::{BootError, Problem};
pub use memory_map::LOW_RAM_END;

use crate::config::{Image, Module};
use vm_memory::GuestMemoryMmap;

/// What to boot.
#[derive(Clone, Copy, Debug)]
pub struct BootSource<'a> {
    /// The kernel.
    pub kernel: &'a Image,
    /// The initial RAM disk. A multiboot kernel gets it as its first module.
    pub initrd: Option<&'a Image>,
    /// Further modules, for kernels that take them.
    pub modules: &'a [Module],
    /// The kernel's command line.
    pub cmdline: &'a str,
    /// Number of processors, for the firmware tables.
    pub processors: u32,
}

/// Puts everything into guest RAM, which begins at 0, ends at or below [`LOW_RAM_END`] and goes on at 4 GiB; says
/// how the boot processor starts.
///
/// # Errors
/// What is wrong with which file.
pub fn load(memory: &GuestMemoryMmap, source: &BootSource<'_>) -> Result<EntryState, BootError> {
    let ram = memory_map::Ram::of(memory);
    let kernel = source.kernel;
    let blame = |problem| BootError { file: kernel.name.clone(), problem };
    let rsdp = acpi::install(memory, source.processors).map_err(blame)?;
    let boot = Boot { memory, ram, source, rsdp };
    if linux::is_bzimage(&kernel.bytes) {
        return linux::load(&boot);
    }
    if let Some(header) = multiboot::find_header(&kernel.bytes) {
        return multiboot::load(&boot, header);
    }
    if elf::is_elf(&kernel.bytes) {
        return pvh::load(&boot);
    }
    Err(blame(Problem::NotAKernel))
}

/// What the loaders share.
struct Boot<'a> {
    memory: &'a GuestMemoryMmap,
    ram: memory_map::Ram,
    source: &'a BootSource<'a>,
    rsdp: u64,
}

impl Boot<'_> {
    fn blame(&self, problem: Problem) -> BootError {
        BootError { file: self.source.kernel.name.clone(), problem }
    }
}

#[cfg(test)]
mod tests;
