//! The messages of Spark Connect, with the fields that are needed. The numbers are those of `spark/connect/base.proto`,
//! `commands.proto` and `relations.proto` of Apache Spark 4.1. Where the protocol allows one of several fields, these
//! are optional fields: that is the same on the wire.

use prost::Message;

#[derive(Clone, PartialEq, Message)]
pub struct UserContext {
    #[prost(string, tag = "1")]
    pub user_id: String,
    #[prost(string, tag = "2")]
    pub user_name: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Plan {
    #[prost(message, optional, tag = "1")]
    pub root: Option<Relation>,
    #[prost(message, optional, tag = "2")]
    pub command: Option<Command>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Relation {
    #[prost(message, optional, tag = "10")]
    pub sql: Option<Sql>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Sql {
    #[prost(string, tag = "1")]
    pub query: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Command {
    #[prost(message, optional, tag = "5")]
    pub sql_command: Option<SqlCommand>,
}

#[derive(Clone, PartialEq, Message)]
pub struct SqlCommand {
    /// Deprecated by `input`, and understood by all versions.
    #[prost(string, tag = "1")]
    pub sql: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ExecutePlanRequest {
    #[prost(string, tag = "1")]
    pub session_id: String,
    #[prost(message, optional, tag = "2")]
    pub user_context: Option<UserContext>,
    #[prost(message, optional, tag = "3")]
    pub plan: Option<Plan>,
    #[prost(string, optional, tag = "4")]
    pub client_type: Option<String>,
    #[prost(message, repeated, tag = "5")]
    pub request_options: Vec<RequestOption>,
    #[prost(string, optional, tag = "6")]
    pub operation_id: Option<String>,
    #[prost(string, optional, tag = "8")]
    pub observed_session_id: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct RequestOption {
    #[prost(message, optional, tag = "1")]
    pub reattach_options: Option<ReattachOptions>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ReattachOptions {
    #[prost(bool, tag = "1")]
    pub reattachable: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct ExecutePlanResponse {
    #[prost(message, optional, tag = "2")]
    pub arrow_batch: Option<ArrowBatch>,
    #[prost(string, tag = "13")]
    pub response_id: String,
    #[prost(message, optional, tag = "14")]
    pub result_complete: Option<Empty>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ArrowBatch {
    #[prost(int64, tag = "1")]
    pub row_count: i64,
    /// A stream of Arrow IPC.
    #[prost(bytes = "bytes", tag = "2")]
    pub data: bytes::Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub struct Empty {}

#[derive(Clone, PartialEq, Message)]
pub struct ReattachExecuteRequest {
    #[prost(string, tag = "1")]
    pub session_id: String,
    #[prost(message, optional, tag = "2")]
    pub user_context: Option<UserContext>,
    #[prost(string, tag = "3")]
    pub operation_id: String,
    #[prost(string, optional, tag = "4")]
    pub client_type: Option<String>,
    #[prost(string, optional, tag = "5")]
    pub last_response_id: Option<String>,
    #[prost(string, optional, tag = "6")]
    pub observed_session_id: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ReleaseExecuteRequest {
    #[prost(string, tag = "1")]
    pub session_id: String,
    #[prost(message, optional, tag = "2")]
    pub user_context: Option<UserContext>,
    #[prost(string, tag = "3")]
    pub operation_id: String,
    #[prost(string, optional, tag = "4")]
    pub client_type: Option<String>,
    #[prost(message, optional, tag = "5")]
    pub release_all: Option<Empty>,
    #[prost(string, optional, tag = "7")]
    pub observed_session_id: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ConfigRequest {
    #[prost(string, tag = "1")]
    pub session_id: String,
    #[prost(message, optional, tag = "2")]
    pub user_context: Option<UserContext>,
    #[prost(message, optional, tag = "3")]
    pub operation: Option<ConfigOperation>,
    #[prost(string, optional, tag = "4")]
    pub client_type: Option<String>,
    #[prost(string, optional, tag = "8")]
    pub observed_session_id: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ConfigOperation {
    #[prost(message, optional, tag = "1")]
    pub set: Option<ConfigSet>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ConfigSet {
    #[prost(message, repeated, tag = "1")]
    pub pairs: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
pub struct KeyValue {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, optional, tag = "2")]
    pub value: Option<String>,
}

/// Also the answer to a release, of which nothing is read.
#[derive(Clone, PartialEq, Message)]
pub struct SessionResponse {
    /// Of an answer to [`ConfigRequest`]: another number in each of the answers.
    #[prost(string, tag = "4")]
    pub server_session_id: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ReleaseSessionRequest {
    #[prost(string, tag = "1")]
    pub session_id: String,
    #[prost(message, optional, tag = "2")]
    pub user_context: Option<UserContext>,
    #[prost(string, optional, tag = "3")]
    pub client_type: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes are those that Spark's own Python client 4.1.4 sends for the same messages.
    #[test]
    fn a_statement_is_encoded_as_sparks_own_client_encodes_it() {
        let command = Command { sql_command: Some(SqlCommand { sql: "SELECT 1".to_owned() }) };
        let request = ExecutePlanRequest {
            session_id: "s".to_owned(),
            user_context: Some(UserContext { user_id: "u".to_owned(), user_name: "n".to_owned() }),
            plan: Some(Plan { root: None, command: Some(command) }),
            client_type: Some("c".to_owned()),
            request_options: vec![RequestOption { reattach_options: Some(ReattachOptions { reattachable: true }) }],
            operation_id: Some("o".to_owned()),
            observed_session_id: Some("v".to_owned()),
        };
        assert_eq!(hex(&request.encode_to_vec()), EXECUTE);
        let query = Relation { sql: Some(Sql { query: "SELECT 1".to_owned() }) };
        assert_eq!(hex(&Plan { root: Some(query), command: None }.encode_to_vec()), QUERY);
    }

    #[test]
    fn an_answer_of_the_server_is_decoded() {
        let bytes = unhex(ANSWER);
        let answer = ExecutePlanResponse::decode(bytes.as_slice()).unwrap();
        assert_eq!(answer.response_id, "r");
        let batch = answer.arrow_batch.unwrap();
        assert_eq!((batch.row_count, batch.data.as_ref()), (3, &b"abc"[..]));
    }

    const EXECUTE: &str = "0a017312060a017512016e1a0e120c2a0a0a0853454c45435420312201632a040a02080132016f420176";
    const QUERY: &str = "0a0c520a0a0853454c4543542031";
    const ANSWER: &str = "0a017312070803120361626362016f6a01727a0176";

    fn hex(bytes: &[u8]) -> String {
        bytes
            .iter()
            .flat_map(|byte| [byte >> 4, byte & 15])
            .filter_map(|digit| char::from_digit(digit.into(), 16))
            .collect()
    }

    fn unhex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }
}
