//! The last exits of a vCPU, for the message when a guest ended badly.

const KEPT: usize = 32;

/// What an exit was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum What {
    Out { port: u16, width: u8, value: u32 },
    In { port: u16, width: u8 },
    MmioRead { address: u64, width: u8 },
    MmioWrite { address: u64, width: u8, value: u64 },
}

/// A ring of exits.
pub(super) struct Recent {
    ring: [Option<What>; KEPT],
    total: usize,
}

impl Recent {
    pub(super) const fn new() -> Self {
        Self { ring: [None; KEPT], total: 0 }
    }

    #[inline]
    pub(super) fn push(&mut self, what: What) {
        self.ring[self.total % KEPT] = Some(what);
        self.total = self.total.wrapping_add(1);
    }

    /// The exits of vCPU `vcpu`, oldest first, one line each.
    pub(super) fn lines(&self, vcpu: u32) -> Vec<String> {
        let (newer, older) = self.ring.split_at(self.total % KEPT);
        older.iter().chain(newer).flatten().map(|what| format!("vCPU {vcpu}: {}", line(*what))).collect()
    }
}

fn line(what: What) -> String {
    match what {
        What::Out { port, width, value } => format!("OUT {port:#06x}, {width} bytes: {value:#x}"),
        What::In { port, width } => format!("IN {port:#06x}, {width} bytes"),
        What::MmioRead { address, width } => format!("read of {address:#x}, {width} bytes, not RAM"),
        What::MmioWrite { address, width, value } => {
            format!("write to {address:#x}, {width} bytes, not RAM: {value:#x}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_exits_come_oldest_first() {
        let mut recent = Recent::new();
        assert!(recent.lines(0).is_empty());
        for port in 0..40 {
            recent.push(What::In { port, width: 1 });
        }
        let lines = recent.lines(3);
        assert_eq!(lines.len(), KEPT);
        assert_eq!(lines[0], "vCPU 3: IN 0x0008, 1 bytes");
        assert_eq!(lines[KEPT - 1], "vCPU 3: IN 0x0027, 1 bytes");
    }
}
