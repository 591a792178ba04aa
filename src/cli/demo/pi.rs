//! Digits of pi, computed afresh to compare with: Machin's formula in plain long arithmetic.

/// One limb holds nine decimal digits.
const LIMB: u64 = 1_000_000_000;

/// A number below ten: whole part first, then nine digits a limb.
struct Fixed(Vec<u64>);

impl Fixed {
    fn whole(n: u64, limbs: usize) -> Self {
        let mut all = vec![0; limbs];
        all[0] = n;
        Fixed(all)
    }

    /// Divides by a small number; whether anything is left.
    fn divide(&mut self, by: u64) -> bool {
        let (mut rest, mut left) = (0, false);
        for limb in &mut self.0 {
            let n = rest * LIMB + *limb;
            (*limb, rest) = (n / by, n % by);
            left |= *limb != 0;
        }
        left
    }

    fn add(&mut self, other: &Fixed) {
        let mut carry = 0;
        for (a, b) in self.0.iter_mut().zip(&other.0).rev() {
            let n = *a + b + carry;
            (*a, carry) = (n % LIMB, n / LIMB);
        }
    }

    fn subtract(&mut self, other: &Fixed) {
        let mut borrow = 0;
        for (a, b) in self.0.iter_mut().zip(&other.0).rev() {
            let n = *a + LIMB - b - borrow;
            (*a, borrow) = (n % LIMB, 1 - n / LIMB);
        }
    }
}

/// `times` × arctan(1/x).
fn arctan(times: u64, x: u64, limbs: usize) -> Fixed {
    let mut power = Fixed::whole(times, limbs);
    power.divide(x);
    let mut sum = Fixed(power.0.clone());
    for n in 1u64.. {
        if !power.divide(x * x) {
            break;
        }
        let mut term = Fixed(power.0.clone());
        term.divide(2 * n + 1);
        if n % 2 == 1 { sum.subtract(&term) } else { sum.add(&term) }
    }
    sum
}

/// The first `digits` digits, without the point: `31415…`.
pub fn digits(digits: usize) -> String {
    let limbs = digits / 9 + 4;
    let mut pi = arctan(16, 5, limbs);
    pi.subtract(&arctan(4, 239, limbs));
    let mut text = pi.0[0].to_string();
    for limb in &pi.0[1..] {
        text += &format!("{limb:09}");
    }
    text.truncate(digits);
    text
}

#[cfg(test)]
mod tests {
    use super::digits;

    #[test]
    fn known_digits() {
        assert_eq!(digits(20), "31415926535897932384");
        let thousand = digits(1000);
        assert_eq!(thousand.len(), 1000);
        // Six nines in a row end at the 768th digit.
        assert_eq!(&thousand[762..768], "999999");
        assert!(thousand.ends_with("9216420198"));
        assert_eq!(digits(3000)[..1000], thousand);
    }
}
