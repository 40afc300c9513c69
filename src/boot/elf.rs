//! ELF of both classes, as far as kernels need it: what to load where, the entry point, and the notes.

use super::image::View;
use super::memory_map::{Ram, write};
use super::{Boot, Problem};

const MAGIC: &[u8] = b"\x7fELF";
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const MACHINES: [u16; 2] = [3, 62]; // 80386, x86-64

const LOAD: u32 = 1;
const NOTE: u32 = 4;
/// The owner of Xen's notes, and the one that names the PVH entry point.
const XEN: &[u8] = b"Xen\0";
const PHYS32_ENTRY: u32 = 18;

/// Does the file begin like an ELF file?
pub fn is_elf(file: &[u8]) -> bool {
    file.starts_with(MAGIC)
}

/// A program header.
#[derive(Clone, Copy, Debug)]
struct Segment {
    kind: u32,
    offset: u64,
    virtual_address: u64,
    physical_address: u64,
    file_size: u64,
    memory_size: u64,
    alignment: u64,
}

/// An executable.
pub struct Elf<'a> {
    view: View<'a>,
    entry: u64,
    segments: Vec<Segment>,
}

/// Where fields are in the two classes.
struct Layout {
    is_64: bool,
    entry: u64,
    segments: u64,
    segment_size: u64,
    segment_count: u64,
    smallest_segment: u64,
}

const LAYOUT_32: Layout = Layout {
    is_64: false,
    entry: 24,
    segments: 28,
    segment_size: 42,
    segment_count: 44,
    smallest_segment: 32,
};
const LAYOUT_64: Layout = Layout {
    is_64: true,
    entry: 24,
    segments: 32,
    segment_size: 54,
    segment_count: 56,
    smallest_segment: 56,
};

impl Layout {
    fn word(&self, view: View<'_>, at: u64) -> Result<u64, Problem> {
        if self.is_64 { view.u64(at) } else { view.u32(at).map(u64::from) }
    }

    /// The program header at `at`; the flags stand in another place in each class.
    fn segment(&self, view: View<'_>, at: u64) -> Result<Segment, Problem> {
        let (first, step) = if self.is_64 { (8, 8) } else { (4, 4) };
        let word = |n: u64| self.word(view, at + first + n * step);
        let after_sizes = if self.is_64 { 5 } else { 6 };
        Ok(Segment {
            kind: view.u32(at)?,
            offset: word(0)?,
            virtual_address: word(1)?,
            physical_address: word(2)?,
            file_size: word(3)?,
            memory_size: word(4)?,
            alignment: word(after_sizes)?,
        })
    }
}

impl<'a> Elf<'a> {
    /// Reads the headers.
    pub fn parse(file: &'a [u8]) -> Result<Self, Problem> {
        let view = View::new(file, "the ELF header");
        let identification = view.slice(0, 16)?;
        if identification[5] != LITTLE_ENDIAN || !MACHINES.contains(&view.u16(18)?) {
            return Err(Problem::Unsupported {
                what: "an ELF file for another machine",
                remedy: "pass a kernel for x86",
            });
        }
        let layout = if identification[4] == CLASS_64 { &LAYOUT_64 } else { &LAYOUT_32 };
        let table = layout.word(view, layout.segments)?;
        let size = u64::from(view.u16(layout.segment_size)?);
        let count = u64::from(view.u16(layout.segment_count)?);
        if size < layout.smallest_segment {
            return Err(Problem::Corrupt("its program headers are too small"));
        }
        let headers = view.named("the program headers");
        headers.slice(table, size * count)?;
        let segments =
            (0..count).map(|i| layout.segment(headers, table + i * size)).collect::<Result<_, _>>()?;
        Ok(Self { view, entry: layout.word(view, layout.entry)?, segments })
    }

    fn of_kind(&self, kind: u32) -> impl Iterator<Item = &Segment> {
        self.segments.iter().filter(move |segment| segment.kind == kind && segment.memory_size > 0)
    }

    /// The entry point as a physical address.
    pub fn entry(&self) -> u64 {
        let inside = |segment: &&Segment| {
            self.entry.checked_sub(segment.virtual_address).is_some_and(|offset| offset < segment.memory_size)
        };
        self.of_kind(LOAD).find(inside).map_or(self.entry, |segment| {
            segment.physical_address.wrapping_add(self.entry - segment.virtual_address)
        })
    }

    /// Copies the segments into RAM; returns the end of the highest.
    pub fn load(&self, boot: &Boot<'_>) -> Result<u64, Problem> {
        let mut end = 0;
        for segment in self.of_kind(LOAD) {
            end = end.max(self.load_segment(boot, boot.ram, segment)?);
        }
        if end == 0 { Err(Problem::Corrupt("it has nothing to load")) } else { Ok(end) }
    }

    fn load_segment(&self, boot: &Boot<'_>, ram: Ram, segment: &Segment) -> Result<u64, Problem> {
        if segment.file_size > segment.memory_size {
            return Err(Problem::Corrupt("a segment is larger in the file than in memory"));
        }
        let bytes = self.view.named("a segment").slice(segment.offset, segment.file_size)?;
        let end = ram.check(segment.physical_address, segment.memory_size)?;
        // What the file does not fill is zero, as RAM is at power-on.
        write(boot.memory, segment.physical_address, bytes)?;
        Ok(end)
    }

    /// The entry point that the PVH note names.
    pub fn pvh_entry(&self) -> Result<Option<u64>, Problem> {
        for segment in self.of_kind(NOTE) {
            let notes = self.view.named("the notes").slice(segment.offset, segment.file_size)?;
            if let Some(entry) = find_pvh_note(View::new(notes, "a note"), segment.alignment)? {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }
}

/// Notes: sizes of name and descriptor, a type, the name and the descriptor, each padded.
fn find_pvh_note(notes: View<'_>, alignment: u64) -> Result<Option<u64>, Problem> {
    let padding = if alignment == 8 { 8 } else { 4 };
    let mut at = 0;
    while at + 12 <= notes.len() {
        let name_size = u64::from(notes.u32(at)?);
        let size = u64::from(notes.u32(at + 4)?);
        let kind = notes.u32(at + 8)?;
        let descriptor = at + (12 + name_size).next_multiple_of(padding);
        if kind == PHYS32_ENTRY && notes.slice(at + 12, name_size)? == XEN {
            // The descriptor is of the kernel's word size, and the address has 32 bits.
            return match size {
                4 | 8 => notes.u32(descriptor).map(|entry| Some(u64::from(entry))),
                _ => Err(Problem::Corrupt("its PVH note does not hold an address")),
            };
        }
        at = descriptor + size.next_multiple_of(padding);
    }
    Ok(None)
}
