//! Frames that the processor pushes: every slot is translated before the first is written.

use crate::mmu::access::{Piece, is_canonical};
use crate::mmu::{Fault, Kind, Privilege};
use crate::segment::{self, contains};
use crate::state::Cpu;
use vmcs12::arch::event::Exception;
use vmcs12::arch::segment::Segment;

/// Slots of the longest frame: a call gate's 31 parameters, SS, ESP, CS, EIP.
const SLOTS: usize = 36;

/// A stack about to be pushed to.
pub(crate) struct Frame {
    segment: Segment,
    /// Where the top of the stack is, before the slots that have been staged.
    pub pointer: u64,
    mask: u64,
    size: usize,
    privilege: Privilege,
    /// A place beyond the segment's limit, or not canonical.
    beyond: Exception,
    slots: [Option<([Piece; 2], u64)>; SLOTS],
    count: usize,
}

impl Frame {
    /// A frame of `size`-byte slots below `pointer`, in 64-bit mode.
    pub fn long(pointer: u64, size: usize, cpl: u8, beyond: Exception) -> Self {
        Self::new(Segment::default(), pointer, u64::MAX, size, cpl, beyond)
    }

    /// A frame of `size`-byte slots below `pointer` in a stack segment.
    pub fn in_segment(segment: Segment, pointer: u64, size: usize, cpl: u8, beyond: Exception) -> Self {
        let mask = segment::stack_mask(&segment);
        Self::new(segment, pointer, mask, size, cpl, beyond)
    }

    fn new(segment: Segment, pointer: u64, mask: u64, size: usize, cpl: u8, beyond: Exception) -> Self {
        let privilege = if cpl == 3 { Privilege::User } else { Privilege::Supervisor };
        Self { segment, pointer, mask, size, privilege, beyond, slots: [None; SLOTS], count: 0 }
    }

    /// The stack pointer with the frame on it: bits beyond the segment's pointer size are `before`'s.
    pub fn stack_pointer(&self, before: u64) -> u64 {
        if self.mask == 0xffff {
            (before & !0xffff) | (self.pointer & 0xffff)
        } else {
            self.pointer & self.mask
        }
    }
}

impl Cpu {
    /// Adds a slot: checked and translated, not yet written.
    pub(crate) fn stage(&mut self, frame: &mut Frame, value: u64) -> Result<(), Fault> {
        let size = frame.size as u64;
        let offset = frame.pointer.wrapping_sub(size) & frame.mask;
        let linear = if frame.mask == u64::MAX {
            if !(is_canonical(offset) && is_canonical(offset.wrapping_add(size - 1))) {
                return Err(frame.beyond.into());
            }
            offset
        } else {
            let real = !self.protected() || self.virtual_8086();
            if !contains(&frame.segment, offset, size, real) {
                return Err(frame.beyond.into());
            }
            frame.segment.base.wrapping_add(offset) & 0xffff_ffff
        };
        let pieces = self.resolve(linear, frame.size, Kind::Write, frame.privilege)?;
        frame.slots[frame.count] = Some((pieces, value));
        frame.count += 1;
        frame.pointer = offset;
        Ok(())
    }

    /// Writes every slot.
    pub(crate) fn write_frame(&mut self, frame: &Frame) {
        for (pieces, value) in frame.slots[..frame.count].iter().flatten() {
            self.write_pieces(pieces, &value.to_le_bytes()[..frame.size]);
        }
    }
}
