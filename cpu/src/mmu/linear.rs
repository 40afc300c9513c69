//! Guest-linear memory for the VMM: the memory operands of VMX instructions.

use super::access::is_canonical;
use super::{Fault, Kind, Privilege};
use crate::state::Cpu;
use vmcs12::addr::{Gpa, Gva, Linear, LinearFault};
use vmcs12::arch::event::Exception;

/// Longest piece that is translated at once: it spans two pages at most.
const PIECE: usize = 4096;

/// The linear memory of the guest that took the last exit, in its mode and at its CPL.
pub struct LinearView<'a>(&'a mut Cpu);

impl Cpu {
    /// The linear memory of the guest that took the last exit.
    pub fn linear(&mut self) -> LinearView<'_> {
        LinearView(self)
    }
}

fn refused(fault: Fault) -> LinearFault {
    match fault {
        Fault::Exception(exception) => LinearFault::Exception(exception),
        Fault::EptViolation { gpa, .. } | Fault::EptMisconfiguration { gpa } => LinearFault::Ept(Gpa(gpa)),
    }
}

impl LinearView<'_> {
    /// Translates all of an operand before any of it is touched.
    fn check(&mut self, address: Gva, len: usize, kind: Kind) -> Result<(), LinearFault> {
        for done in (0..len).step_by(PIECE) {
            self.piece(address.plus(done as u64), (len - done).min(PIECE), kind)?;
        }
        Ok(())
    }

    fn piece(
        &mut self,
        address: Gva,
        len: usize,
        kind: Kind,
    ) -> Result<[super::access::Piece; 2], LinearFault> {
        let cpu = &mut *self.0;
        let linear = if cpu.is_64() { address.0 } else { address.0 & 0xffff_ffff };
        let last = linear.wrapping_add((len as u64).saturating_sub(1));
        if cpu.is_64() && !(is_canonical(linear) && is_canonical(last)) {
            return Err(LinearFault::Exception(Exception::gp(0)));
        }
        let privilege = if cpu.cpl == 3 { Privilege::User } else { Privilege::Supervisor };
        cpu.resolve(linear, len, kind, privilege).map_err(refused)
    }
}

impl Linear for LinearView<'_> {
    fn read(&mut self, address: Gva, into: &mut [u8]) -> Result<(), LinearFault> {
        self.check(address, into.len(), Kind::Read)?;
        let mut at = address;
        for part in into.chunks_mut(PIECE) {
            let pieces = self.piece(at, part.len(), Kind::Read)?;
            self.0.read_pieces(&pieces, part);
            at = at.plus(part.len() as u64);
        }
        Ok(())
    }

    fn write(&mut self, address: Gva, bytes: &[u8]) -> Result<(), LinearFault> {
        self.check(address, bytes.len(), Kind::Write)?;
        let mut at = address;
        for part in bytes.chunks(PIECE) {
            let pieces = self.piece(at, part.len(), Kind::Write)?;
            self.0.write_pieces(&pieces, part);
            at = at.plus(part.len() as u64);
        }
        Ok(())
    }
}
