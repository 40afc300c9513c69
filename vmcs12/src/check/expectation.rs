//! What a rule expects of its field.

use super::Ctx;
use crate::caps::Allowed;
use crate::control::Word;

/// What a rule expects of its first field.
#[derive(Clone, Copy, Debug)]
pub enum Expectation {
    /// The setting of each control is one that the processor allows.
    Setting(Word),
    /// These bits are 0.
    Zero(u64),
    /// No bit is 1 at or above the physical-address width.
    InPhysicalWidth,
    /// A canonical address, on processors with Intel 64.
    Canonical,
    /// These bits are as they must be: computed from the capabilities.
    Bits(fn(&Ctx) -> Allowed),
    /// Another condition, in the words of the rule's sentence.
    Holds(fn(&Ctx) -> bool),
}

impl Expectation {
    #[inline(always)]
    pub(super) fn holds(&self, value: u64, ctx: &Ctx) -> bool {
        match self {
            Self::Setting(word) => ctx.caps.allowed(*word).permits(value),
            Self::Zero(bits) => value & bits == 0,
            Self::InPhysicalWidth => value & ctx.caps.beyond_physical_width() == 0,
            Self::Canonical => ctx.caps.is_canonical(value) || !ctx.caps.has_intel_64(),
            Self::Bits(allowed) => allowed(ctx).permits(value),
            Self::Holds(test) => test(ctx),
        }
    }

    /// The bits that must and that may be 1, where the rule is about single bits: for reports.
    pub fn allowed(&self, ctx: &Ctx) -> Option<Allowed> {
        let may_be_one = |may_be_one| Allowed { must_be_one: 0, may_be_one };
        match self {
            Self::Setting(word) => Some(ctx.caps.allowed(*word)),
            Self::Zero(bits) => Some(may_be_one(!bits)),
            Self::InPhysicalWidth => Some(may_be_one(!ctx.caps.beyond_physical_width())),
            Self::Bits(allowed) => Some(allowed(ctx)),
            Self::Canonical | Self::Holds(_) => None,
        }
    }
}
