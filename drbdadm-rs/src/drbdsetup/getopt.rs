//! Long options as `getopt_long` reads them: anywhere among the words, abbreviated where that is unambiguous.

/// Whether an option takes an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Argument {
    /// None.
    No,
    /// Always: `--name=value` or `--name value`.
    Required,
    /// Perhaps: only `--name=value`.
    Optional,
}

/// An option a command knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LongOption {
    /// Its name.
    pub(super) name: &'static str,
    /// Whether it takes an argument.
    pub(super) argument: Argument,
}

/// A command line taken apart.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Parsed {
    /// The options in order, by full name.
    pub(super) options: Vec<(&'static str, Option<String>)>,
    /// Everything else.
    pub(super) words: Vec<String>,
}

/// Takes a command line apart. `program` begins the messages.
///
/// # Errors
/// The message of `getopt_long`, one line without newline.
pub(super) fn parse(program: &str, arguments: &[String], known: &[LongOption]) -> Result<Parsed, String> {
    let mut parsed = Parsed::default();
    let mut rest = arguments.iter();
    while let Some(word) = rest.next() {
        if word == "--" {
            parsed.words.extend(rest.by_ref().cloned());
        } else if let Some(long) = word.strip_prefix("--") {
            let (name, value) = match long.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (long, None),
            };
            let option = find(program, long, name, known)?;
            let value = match (option.argument, value) {
                (Argument::No, Some(_)) => {
                    return Err(format!("{program}: option '--{}' doesn't allow an argument", option.name));
                }
                (Argument::Required, None) => match rest.next() {
                    Some(next) => Some(next.clone()),
                    None => {
                        return Err(format!("{program}: option '--{}' requires an argument", option.name));
                    }
                },
                (_, value) => value,
            };
            parsed.options.push((option.name, value));
        } else if let Some(short) = word.strip_prefix('-').and_then(|letters| letters.chars().next()) {
            return Err(format!("{program}: invalid option -- '{short}'"));
        } else {
            parsed.words.push(word.clone());
        }
    }
    Ok(parsed)
}

fn find<'a>(
    program: &str,
    written: &str,
    name: &str,
    known: &'a [LongOption],
) -> Result<&'a LongOption, String> {
    if let Some(exact) = known.iter().find(|option| option.name == name) {
        return Ok(exact);
    }
    let candidates: Vec<&LongOption> = known.iter().filter(|option| option.name.starts_with(name)).collect();
    match candidates.as_slice() {
        [only] => Ok(only),
        [] => Err(format!("{program}: unrecognized option '--{written}'")),
        several => {
            let names: Vec<String> = several.iter().map(|option| format!("'--{}'", option.name)).collect();
            Err(format!("{program}: option '--{written}' is ambiguous; possibilities: {}", names.join(" ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [LongOption; 4] = [
        LongOption { name: "force", argument: Argument::Optional },
        LongOption { name: "size", argument: Argument::Required },
        LongOption { name: "set-defaults", argument: Argument::No },
        LongOption { name: "si", argument: Argument::No },
    ];

    fn run(words: &[&str]) -> Result<Parsed, String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        parse("resize", &words, &KNOWN)
    }

    #[test]
    fn options_stand_anywhere_and_may_be_shortened() {
        let parsed = run(&["0", "--fo", "--size", "1G", "x", "--", "--force"]).unwrap();
        assert_eq!(parsed.options, [("force", None), ("size", Some("1G".to_owned()))]);
        assert_eq!(parsed.words, ["0", "x", "--force"]);
        assert_eq!(run(&["--si"]).unwrap().options, [("si", None)]);
    }

    #[test]
    fn mistakes_are_told_as_getopt_tells_them() {
        let cases: [(&[&str], &str); 5] = [
            (&["--bogus=1"], "resize: unrecognized option '--bogus=1'"),
            (&["--s"], "resize: option '--s' is ambiguous; possibilities: '--size' '--set-defaults' '--si'"),
            (&["--size"], "resize: option '--size' requires an argument"),
            (&["--set-defaults=yes"], "resize: option '--set-defaults' doesn't allow an argument"),
            (&["-t", "5"], "resize: invalid option -- 't'"),
        ];
        for (words, message) in cases {
            assert_eq!(run(words).unwrap_err(), message);
        }
    }
}
