//! `query`: SQL over the tables, for people who look at a result. It only reads, and needs neither key, lock nor state
//! file, so it works beside a running daemon.

use std::{
    fs::File,
    io::{self, BufWriter, ErrorKind, IsTerminal as _, Write},
    path::PathBuf,
};

use arrow::{
    array::RecordBatch, datatypes::SchemaRef, error::ArrowError, util::pretty::pretty_format_batches_with_schema,
};
use clap::{Args, ValueEnum};
use parquet::{arrow::ArrowWriter, errors::ParquetError};

use super::{
    config_path,
    exit::{CONFIGURATION, Exit, failed, misconfigured},
};
use crate::{
    config,
    fhir::{RESOURCE_TYPES, ResourceType},
    sync::{Location, Root, TablesConfig, chain},
    telemetry,
};

#[derive(Args, Debug)]
pub struct Arguments {
    /// One SELECT; a table has the name of its resource type: 'SELECT count(birthDate) FROM Patient'
    sql: String,
    /// How the answer is written; json is one object per line
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Write the answer into this file, instead of to the standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Configuration file, for its tables [default: `FHIR_SYNC_CONFIG`, else /etc/fhir-sync/fhir-sync.toml]
    #[arg(short, long, value_name = "FILE", conflicts_with = "delta_path")]
    config: Option<PathBuf>,
    /// Folder of the Delta tables
    #[arg(long, value_name = "FOLDER")]
    delta_path: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Csv,
    Json,
    Parquet,
}

pub async fn run(arguments: Arguments) -> Result<(), Exit> {
    telemetry::start(&telemetry::Config::quiet());
    let tables = match arguments.delta_path {
        None => config::check(&config_path(arguments.config)).map_err(misconfigured)?.0.tables,
        Some(folder) if matches!(folder.try_exists(), Ok(false)) || folder.is_file() => {
            eprintln!("fhir-sync: {} is not a folder", folder.display());
            return Err(CONFIGURATION);
        }
        Some(folder) => TablesConfig::new(Location::Folder(folder)),
    };
    if arguments.format == Format::Parquet && arguments.output.is_none() && io::stdout().is_terminal() {
        return Err(failed("Parquet is not for a terminal; name a file with --output"));
    }
    let root = Root::for_reading(tables).map_err(|error| failed(&chain(&error)))?;
    let answer = root.query(&named_types(&arguments.sql), &arguments.sql).await;
    let mut answer = answer.map_err(|error| failed(&chain(&error)))?;
    let out: Box<dyn Write + Send> = match &arguments.output {
        Some(path) => {
            let created = File::create(path);
            let created = created.map_err(|error| failed(&format!("{} cannot be written: {error}", path.display())))?;
            Box::new(BufWriter::new(created))
        }
        None => Box::new(BufWriter::new(io::stdout())),
    };
    let mut writer =
        Writer::begin(arguments.format, out, answer.schema.clone()).map_err(|error| not_written(&error))?;
    while let Some(rows) = answer.next().await.map_err(|error| failed(&chain(&error)))? {
        match writer.write(rows) {
            Err(WriteError::Closed) => return Ok(()),
            written => written.map_err(|error| not_written(&error))?,
        }
    }
    match writer.end() {
        Err(WriteError::Closed) => Ok(()),
        ended => ended.map_err(|error| not_written(&error)),
    }
}

fn not_written(error: &WriteError) -> Exit {
    match error {
        WriteError::Closed => failed("the reader has closed the pipe"),
        WriteError::Other(reason) => failed(&format!("the answer cannot be written: {reason}")),
    }
}

enum WriteError {
    /// The reader has enough.
    Closed,
    Other(String),
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        if error.kind() == ErrorKind::BrokenPipe { Self::Closed } else { Self::Other(error.to_string()) }
    }
}

impl From<ArrowError> for WriteError {
    fn from(error: ArrowError) -> Self {
        match error {
            ArrowError::IoError(_, error) => error.into(),
            error => Self::Other(error.to_string()),
        }
    }
}

impl From<ParquetError> for WriteError {
    fn from(error: ParquetError) -> Self {
        match error {
            ParquetError::External(source) => match source.downcast::<io::Error>() {
                Ok(error) => (*error).into(),
                Err(source) => Self::Other(source.to_string()),
            },
            error => Self::Other(error.to_string()),
        }
    }
}

type Out = Box<dyn Write + Send>;

/// Writes the rows of an answer as they arrive; a table is as wide as its widest row, so it waits for the last.
enum Writer {
    Table { schema: SchemaRef, rows: Vec<RecordBatch>, out: Out },
    Csv(Box<arrow_csv::Writer<Out>>),
    Json(arrow_json::LineDelimitedWriter<Out>),
    Parquet(Box<ArrowWriter<Out>>),
}

impl Writer {
    fn begin(format: Format, out: Out, schema: SchemaRef) -> Result<Self, WriteError> {
        Ok(match format {
            Format::Table => Self::Table { schema, rows: Vec::new(), out },
            Format::Csv => {
                let nested = schema.fields().iter().find(|field| field.data_type().is_nested());
                if let Some(field) = nested {
                    let way_out = "CSV has no such values; select members of it, or use --format json";
                    return Err(WriteError::Other(format!("the column {:?} is nested; {way_out}", field.name())));
                }
                let mut writer = arrow_csv::WriterBuilder::new().build(out);
                // The head, also of an answer without rows.
                writer.write(&RecordBatch::new_empty(schema))?;
                Self::Csv(Box::new(writer))
            }
            Format::Json => Self::Json(arrow_json::LineDelimitedWriter::new(out)),
            Format::Parquet => Self::Parquet(Box::new(ArrowWriter::try_new(out, schema, None)?)),
        })
    }

    fn write(&mut self, batch: RecordBatch) -> Result<(), WriteError> {
        match self {
            Self::Table { rows, .. } => rows.push(batch),
            Self::Csv(writer) => writer.write(&batch)?,
            Self::Json(writer) => writer.write(&batch)?,
            Self::Parquet(writer) => writer.write(&batch)?,
        }
        Ok(())
    }

    fn end(self) -> Result<(), WriteError> {
        match self {
            Self::Table { schema, rows, mut out } => {
                writeln!(out, "{}", pretty_format_batches_with_schema(schema, &rows)?)?;
                out.flush()?;
            }
            Self::Csv(writer) => writer.into_inner().flush()?,
            Self::Json(mut writer) => {
                writer.finish()?;
                writer.into_inner().flush()?;
            }
            Self::Parquet(writer) => writer.into_inner()?.flush()?,
        }
        Ok(())
    }
}

/// The types whose names occur in the statement: only their tables are opened.
fn named_types(sql: &str) -> Vec<ResourceType> {
    let words: Vec<_> = sql.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    RESOURCE_TYPES.iter().filter(|name| words.contains(*name)).filter_map(|name| name.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::{
        array::{ArrayRef, Int64Array, StringArray},
        datatypes::{DataType, Field, Schema},
    };
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    use super::*;

    fn answer() -> RecordBatch {
        let names: ArrayRef = Arc::new(StringArray::from(vec![Some("a, \"b\""), None]));
        let counts: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
        RecordBatch::try_from_iter_with_nullable([("name", names, true), ("count", counts, true)]).unwrap()
    }

    /// What is in the file after these batches.
    fn written(
        format: Format,
        schema: SchemaRef,
        batches: Vec<RecordBatch>,
    ) -> Result<tempfile::NamedTempFile, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let reason = |error| match error {
            WriteError::Closed => "closed".to_owned(),
            WriteError::Other(reason) => reason,
        };
        let out = Box::new(file.reopen().unwrap());
        let mut writer = Writer::begin(format, out, schema).map_err(reason)?;
        for batch in batches {
            writer.write(batch).map_err(reason)?;
        }
        writer.end().map_err(reason)?;
        Ok(file)
    }

    #[test]
    fn an_answer_is_written_in_each_format_also_without_rows() {
        let text = |format, batches| {
            std::fs::read_to_string(written(format, answer().schema(), batches).unwrap().path()).unwrap()
        };
        assert_eq!(text(Format::Csv, vec![answer()]), "name,count\n\"a, \"\"b\"\"\",1\n,2\n");
        assert_eq!(text(Format::Csv, vec![]), "name,count\n");
        let json = "{\"name\":\"a, \\\"b\\\"\",\"count\":1}\n{\"count\":2}\n";
        assert_eq!(text(Format::Json, vec![answer()]), json);
        assert_eq!(text(Format::Json, vec![]), "");
        let table = text(Format::Table, vec![answer()]);
        assert!(table.contains("| name   | count |") && table.contains("|        | 2     |"), "{table}");
        assert!(text(Format::Table, vec![]).contains("| name | count |"));
        for batches in [vec![answer(), answer()], vec![]] {
            let file = written(Format::Parquet, answer().schema(), batches.clone()).unwrap();
            let read = ParquetRecordBatchReaderBuilder::try_new(file.reopen().unwrap()).unwrap().build().unwrap();
            let rows: usize = read.map(|batch| batch.unwrap().num_rows()).sum();
            assert_eq!(rows, 2 * batches.len());
        }
    }

    #[test]
    fn a_nested_column_is_no_csv_and_the_sentence_says_what_to_do() {
        let nested = Field::new("name", DataType::new_list(DataType::Utf8, true), true);
        let error = written(Format::Csv, Arc::new(Schema::new(vec![nested])), vec![]).unwrap_err();
        assert!(error.contains("the column \"name\" is nested") && error.contains("--format json"), "{error}");
    }

    #[test]
    fn only_the_tables_that_a_statement_names_are_opened() {
        let sql = "SELECT p.id FROM Patient p JOIN Observation o ON o.subject = p.id WHERE o.note = 'Encounters'";
        assert_eq!(named_types(sql), [ResourceType::OBSERVATION, ResourceType::PATIENT]);
    }
}
