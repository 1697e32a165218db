//! garde's messages, turned from what is wrong into what is allowed, and marked as garde's.

use std::borrow::Cow;
use std::fmt::Display;

use garde::i18n::{DefaultI18n, I18n, InvalidCreditCard, InvalidEmail, InvalidPhoneNumber, InvalidUrl, IpKind};

/// Begins the message of each of garde's own rules: they judge one value alone, while a custom rule may compare it with others.
pub(super) const OWN_RULE: char = '\u{1}';

/// Ranges and lengths say the bound that holds; all else is garde's wording.
pub(super) struct Words;

fn own(message: impl Display) -> Cow<'static, str> {
    format!("{OWN_RULE}{message}").into()
}

impl I18n for Words {
    fn length_lower_than(&self, min: usize) -> Cow<'static, str> {
        own(format!("must have a length of at least {min}"))
    }

    fn length_greater_than(&self, max: usize) -> Cow<'static, str> {
        own(format!("must have a length of at most {max}"))
    }

    fn range_lower_than(&self, min: &dyn Display) -> Cow<'static, str> {
        own(format!("must be at least {min}"))
    }

    fn range_greater_than(&self, max: &dyn Display) -> Cow<'static, str> {
        own(format!("must be at most {max}"))
    }

    fn pattern_no_match(&self, pattern: &dyn Display) -> Cow<'static, str> {
        own(format!("must match the regular expression {pattern}"))
    }

    fn contains_missing(&self, pattern: &dyn Display) -> Cow<'static, str> {
        own(format!("must contain {pattern}"))
    }

    fn prefix_missing(&self, pattern: &dyn Display) -> Cow<'static, str> {
        own(format!("must begin with {pattern}"))
    }

    fn suffix_missing(&self, pattern: &dyn Display) -> Cow<'static, str> {
        own(format!("must end with {pattern}"))
    }

    fn required_not_set(&self) -> Cow<'static, str> {
        own("required but not set")
    }

    fn credit_card_invalid(&self, reason: InvalidCreditCard) -> Cow<'static, str> {
        own(DefaultI18n.credit_card_invalid(reason))
    }

    fn url_invalid(&self, reason: InvalidUrl) -> Cow<'static, str> {
        own(DefaultI18n.url_invalid(reason))
    }

    fn phone_number_invalid(&self, reason: InvalidPhoneNumber) -> Cow<'static, str> {
        own(DefaultI18n.phone_number_invalid(reason))
    }

    fn ip_invalid(&self, kind: IpKind) -> Cow<'static, str> {
        own(DefaultI18n.ip_invalid(kind))
    }

    fn matches_field_mismatch(&self, field: &dyn Display) -> Cow<'static, str> {
        own(DefaultI18n.matches_field_mismatch(field))
    }

    fn email_invalid(&self, reason: InvalidEmail) -> Cow<'static, str> {
        own(DefaultI18n.email_invalid(reason))
    }

    fn ascii_invalid(&self) -> Cow<'static, str> {
        own(DefaultI18n.ascii_invalid())
    }

    fn alphanumeric_invalid(&self) -> Cow<'static, str> {
        own(DefaultI18n.alphanumeric_invalid())
    }
}
