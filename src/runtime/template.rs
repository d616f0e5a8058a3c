//! Chat templates: Jinja as Hugging Face runs it.
use minijinja::value::{Kwargs, Value};
use minijinja::{context, Environment, Error, ErrorKind};
use serde::Serialize;
use std::time::{SystemTime, UNIX_EPOCH};

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Its text.
    pub content: String,
}

impl Message {
    /// A message of this role.
    pub fn new(role: &str, content: &str) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A model's chat template, compiled.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

/// Why a conversation has no prompt.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The template is not valid Jinja.
    #[error("the model's chat template cannot be read: {0}")]
    Syntax(Error),
    /// The template failed, often by its own `raise_exception`: roles in a wrong order, an unsupported system message.
    #[error("the model's chat template refuses these messages: {0}")]
    Render(Error),
}

const NAME: &str = "chat_template";

impl ChatTemplate {
    /// Compiles a template. `bos_token` and `eos_token` are the strings that templates refer to, empty if the model has none.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`] if it is not valid Jinja.
    pub fn new(source: &str, bos_token: &str, eos_token: &str) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: String| strftime(&format, SystemTime::now()));
        environment.add_filter("tojson", tojson);
        environment.add_template_owned(NAME, source.to_string()).map_err(TemplateError::Syntax)?;
        Ok(Self { environment, bos_token: bos_token.into(), eos_token: eos_token.into() })
    }

    /// The prompt text of a conversation, with the opening of the assistant's turn at its end. Special tokens are in it as text.
    ///
    /// # Errors
    /// [`TemplateError::Render`] if the template fails.
    pub fn render(&self, messages: &[Message]) -> Result<String, TemplateError> {
        let template = self.environment.get_template(NAME).map_err(TemplateError::Syntax)?;
        let variables = context! { messages, add_generation_prompt => true, bos_token => self.bos_token, eos_token => self.eos_token };
        template.render(variables).map_err(TemplateError::Render)
    }
}

/// `json.dumps` as Python writes it: a space after colon and comma, nothing escaped for HTML, `indent` as an option.
fn tojson(value: Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let bad = |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, e.to_string());
    let mut out = Vec::new();
    match indent {
        Some(n) => {
            let spaces = " ".repeat(n);
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter)).map_err(bad)?;
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, PythonFormatter)).map_err(bad)?,
    }
    Ok(Value::from_safe_string(String::from_utf8_lossy(&out).into_owned()))
}

struct PythonFormatter;

impl serde_json::ser::Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }
    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }
    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

/// The conversions of C's strftime that chat templates use, in UTC; others stay as they are.
fn strftime(format: &str, time: SystemTime) -> String {
    const MONTHS: [&str; 12] =
        ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, second) = (seconds / 86400, seconds % 86400);
    let (year, month, day) = civil(days);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        out += &match chars.next() {
            Some('Y') => year.to_string(),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('B') => MONTHS[month as usize - 1].into(),
            Some('b') => MONTHS[month as usize - 1][..3].into(),
            Some('A') => DAYS[(days % 7) as usize].into(),
            Some('a') => DAYS[(days % 7) as usize][..3].into(),
            Some('H') => format!("{:02}", second / 3600),
            Some('M') => format!("{:02}", second / 60 % 60),
            Some('S') => format!("{:02}", second % 60),
            Some('%') => "%".into(),
            Some(other) => format!("%{other}"),
            None => "%".into(),
        };
    }
    out
}

/// Year, month and day of a day counted from 1970-01-01 (proleptic Gregorian calendar; years are counted from March, so that the leap day is the last).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn render(source: &str, messages: &[Message]) -> Result<String, TemplateError> {
        ChatTemplate::new(source, "<s>", "</s>")?.render(messages)
    }

    fn talk() -> Vec<Message> {
        vec![
            Message::new("system", " Be brief. "),
            Message::new("user", "Hi"),
            Message::new("assistant", "Yes?"),
            Message::new("user", "<b>é\""),
        ]
    }

    #[test]
    fn chatml() {
        let source = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nDefault<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
        assert_eq!(
            render(source, &[Message::new("user", "Hi")]).unwrap(),
            "<|im_start|>system\nDefault<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        );
        assert!(render(source, &talk()).unwrap().starts_with("<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\nHi"));
    }

    #[test]
    fn python_methods_slices_and_variables() {
        let source = "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0]['content'].strip() %}{% set rest = messages[1:] %}{% endif %}<<{{ system }}>>{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}[{{ m.content.upper() }}]{% endfor %}{{ eos_token }}";
        assert_eq!(render(source, &talk()).unwrap(), "<s><<Be brief.>>[HI][YES?][<B>É\"]</s>");
        let twice = [Message::new("system", "x"), Message::new("user", "a"), Message::new("user", "b")];
        assert!(render(source, &twice).unwrap_err().to_string().contains("roles must alternate"));
    }

    #[test]
    fn blocks_leave_no_blank_lines() {
        let source = "{%- for m in messages %}\n    {% if m.role == 'user' %}\nU: {{ m.content }}\n    {% endif %}\n{% endfor %}\n";
        assert_eq!(render(source, &[Message::new("user", "Hi")]).unwrap(), "U: Hi\n");
    }

    #[test]
    fn json_is_written_like_python() {
        assert_eq!(render("{{ messages[3:] | tojson }}", &talk()).unwrap(), r#"[{"role": "user", "content": "<b>é\""}]"#);
        assert_eq!(render("{{ {'a': [1]} | tojson(indent=2) }}", &[]).unwrap(), "{\n  \"a\": [\n    1\n  ]\n}");
    }

    #[test]
    fn undefined_variables_are_false() {
        let source = "{% if tools is defined and tools %}T{% endif %}{% if date_string is not defined %}D{% endif %}{% if messages[0].tool_calls %}C{% endif %}";
        assert_eq!(render(source, &talk()).unwrap(), "D");
    }

    #[test]
    fn broken_templates_are_refused() {
        assert!(matches!(ChatTemplate::new("{% for %}", "", ""), Err(TemplateError::Syntax(_))));
    }

    #[test]
    fn dates() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(strftime("%d %b %Y", at(0)), "01 Jan 1970");
        assert_eq!(strftime("%A, %d %B %Y %H:%M:%S%%", at(951_827_696)), "Tuesday, 29 February 2000 12:34:56%");
        assert_eq!(strftime("%a %y-%m-%d", at(1_735_689_599)), "Tue 24-12-31");
        assert_eq!(strftime("%Y-%m-%d", at(1_735_689_600)), "2025-01-01");
    }
}
