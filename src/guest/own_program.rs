//! This program's own file, as L1 gets it: testudo is L1's VMM, too.

use std::path::Path;

use super::GuestError;

/// What of the ELF format is needed here. ELF-64 Object File Format, "File header", "Program header".
mod elf {
    pub(super) const MAGIC: &[u8] = b"\x7fELF\x02\x01";
    pub(super) const PHOFF: usize = 32;
    pub(super) const SHOFF: usize = 40;
    pub(super) const PHENTSIZE: usize = 54;
    pub(super) const PHNUM: usize = 56;
    pub(super) const SHNUM: usize = 60;
    pub(super) const SHSTRNDX: usize = 62;
    pub(super) const HEADER: usize = 64;

    pub(super) const P_OFFSET: usize = 8;
    pub(super) const P_FILESZ: usize = 32;
    pub(super) const PROGRAM_HEADER: usize = 56;

    pub(super) const PT_INTERP: u32 = 3;
}

/// The running program as a file that runs in an initramfs with nothing else in it.
///
/// # Errors
/// A program that needs a dynamic loader.
pub fn packable() -> Result<Vec<u8>, GuestError> {
    // Not what current_exe() names: that file may have been replaced since.
    let path = Path::new("/proc/self/exe");
    let bytes = std::fs::read(path).map_err(GuestError::file("cannot read", path))?;
    standalone(bytes).map_err(|refusal| refusal.explain())
}

/// Does this program run with nothing else around it?
#[must_use]
pub fn is_static(program: &[u8]) -> bool {
    standalone(program.to_vec()).is_ok()
}

/// Why a program cannot be packed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Refusal {
    NotElf,
    NeedsLoader,
}

impl Refusal {
    fn explain(self) -> GuestError {
        match self {
            Self::NotElf => GuestError::Malformed {
                file: "/proc/self/exe".into(),
                reason: "not a 64-bit ELF file, so it cannot be L1's VMM".into(),
            },
            Self::NeedsLoader => GuestError::Missing {
                what: "this testudo is dynamically linked (its ELF file has PT_INTERP), so it cannot run as L1's VMM".into(),
                remedy: "build it with the project's .cargo/config.toml (crt-static) and without RUSTFLAGS in the environment".into(),
            },
        }
    }
}

/// `program` without what follows its segments: section headers and debugging information, of no use to run it, would
/// cost the guest memory and the time to unpack them.
fn standalone(mut program: Vec<u8>) -> Result<Vec<u8>, Refusal> {
    if program.len() < elf::HEADER || !program.starts_with(elf::MAGIC) {
        return Err(Refusal::NotElf);
    }
    let start = usize::try_from(number(&program, elf::PHOFF, 8)?).map_err(|_| Refusal::NotElf)?;
    let size = usize::from(number(&program, elf::PHENTSIZE, 2)? as u16);
    let count = usize::from(number(&program, elf::PHNUM, 2)? as u16);
    let mut end = start.checked_add(size * count).ok_or(Refusal::NotElf)?;
    for index in 0..count {
        let at = start + index * size;
        let header = program.get(at..at + elf::PROGRAM_HEADER).ok_or(Refusal::NotElf)?;
        if number(header, 0, 4)? == u64::from(elf::PT_INTERP) {
            return Err(Refusal::NeedsLoader);
        }
        let segment_end = number(header, elf::P_OFFSET, 8)?.checked_add(number(header, elf::P_FILESZ, 8)?);
        end = end.max(segment_end.and_then(|end| usize::try_from(end).ok()).ok_or(Refusal::NotElf)?);
    }
    if end > program.len() {
        return Err(Refusal::NotElf);
    }
    program.truncate(end);
    for (field, width) in [(elf::SHOFF, 8), (elf::SHNUM, 2), (elf::SHSTRNDX, 2)] {
        program[field..field + width].fill(0);
    }
    Ok(program)
}

/// The little-endian number of `width` bytes at `at`.
fn number(bytes: &[u8], at: usize, width: usize) -> Result<u64, Refusal> {
    let bytes = bytes.get(at..at + width).ok_or(Refusal::NotElf)?;
    Ok(bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(kind: u32) -> Vec<u8> {
        let mut bytes = vec![0; 400];
        bytes[..elf::MAGIC.len()].copy_from_slice(elf::MAGIC);
        bytes[elf::PHOFF] = 64;
        bytes[elf::SHOFF] = 200;
        bytes[elf::PHENTSIZE] = 56;
        bytes[elf::PHNUM] = 1;
        bytes[elf::SHNUM] = 3;
        bytes[64..68].copy_from_slice(&kind.to_le_bytes());
        bytes[64 + elf::P_OFFSET] = 120;
        bytes[64 + elf::P_FILESZ] = 30;
        bytes
    }

    #[test]
    fn only_the_segments_are_packed() {
        let packed = standalone(program(1)).unwrap();
        assert_eq!(packed.len(), 150);
        assert_eq!(packed[elf::SHNUM], 0);
        assert_eq!(packed[elf::SHOFF], 0);
    }

    #[test]
    fn a_program_with_a_loader_is_refused() {
        assert_eq!(standalone(program(elf::PT_INTERP)), Err(Refusal::NeedsLoader));
        assert!(Refusal::NeedsLoader.explain().to_string().contains("PT_INTERP"));
    }

    #[test]
    fn what_is_no_elf_is_refused() {
        assert_eq!(standalone(b"#!/bin/sh".to_vec()), Err(Refusal::NotElf));
        let mut beyond = program(1);
        beyond[64 + elf::P_OFFSET + 7] = 0xff;
        assert_eq!(standalone(beyond), Err(Refusal::NotElf));
    }

    #[test]
    fn this_test_program_is_static() {
        assert!(packable().is_ok());
    }
}
