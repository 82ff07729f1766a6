// The token server oidc-provider, and a FHIR server that admits its tokens: the demo server behind a front that asks
// oidc-provider whether it knows the token, and what it covers.
//
//   node oidc.mjs INSTALLED UPSTREAM FOLDER CASE
//
// INSTALLED has node_modules with oidc-provider, UPSTREAM is the demo server's base, FOLDER receives the clients'
// private keys: es384.json (a JWK) and rs384.pem. The first line of the output has the addresses, each further one
// what happened at the token endpoint. CASE is what the server does: `plain`; `revoked`: a token is revoked after three
// files; `narrowed`: tokens do not cover observations; `late`: its clock is ten minutes ahead; `replayed`: somebody
// has used each assertion before.

import { generateKeyPairSync } from "node:crypto";
import { once } from "node:events";
import { writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [installed, upstream, folder, behaviour] = process.argv.slice(2);

if (behaviour === "late") {
  const now = Date.now;
  Date.now = () => now() + 600_000;
}
const { default: Provider } = await import(
  pathToFileURL(join(installed, "node_modules/oidc-provider/lib/index.js")).href
);

function say(event) {
  process.stdout.write(`${JSON.stringify(event)}\n`);
}

async function listen(handler) {
  const server = createServer(handler);
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return [server, `http://127.0.0.1:${server.address().port}`];
}

function secret(name, text) {
  writeFileSync(join(folder, name), text, { mode: 0o600 });
}

// A client for each algorithm, which signs with that one only.
function clients() {
  const ec = generateKeyPairSync("ec", { namedCurve: "P-384" });
  secret("es384.json", JSON.stringify({ ...ec.privateKey.export({ format: "jwk" }), kid: "es", alg: "ES384" }));
  const rsa = generateKeyPairSync("rsa", { modulusLength: 2048 });
  secret("rs384.pem", rsa.privateKey.export({ format: "pem", type: "pkcs8" }));
  const keys = [["es", "ES384", ec.publicKey], ["rs", "RS384", rsa.publicKey]];
  return keys.map(([kid, alg, key]) => ({
    client_id: alg.toLowerCase(),
    token_endpoint_auth_method: "private_key_jwt",
    token_endpoint_auth_signing_alg: alg,
    jwks: { keys: [{ ...key.export({ format: "jwk" }), kid, alg, use: "sig" }] },
    grant_types: ["client_credentials"],
    redirect_uris: [],
    response_types: [],
  }));
}

const types = ["Condition", "Encounter", "MedicationRequest", "Observation", "Organization", "Patient", "Practitioner"];
const covered = types.filter((type) => behaviour !== "narrowed" || type !== "Observation");
// `system/*.rs` is a scope like any other to oidc-provider: clients ask for each type.
const scope = covered.map((type) => `system/${type}.rs`).join(" ");

function configuration() {
  return {
    clients: clients(),
    clientAuthMethods: ["private_key_jwt"],
    enabledJWA: { clientAuthSigningAlgValues: ["ES384", "RS384"] },
    ttl: { ClientCredentials: 300 },
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => "urn:fhir",
        getResourceServerInfo: () => ({ scope, audience: "urn:fhir", accessTokenFormat: "opaque" }),
      },
    },
  };
}

async function body(request) {
  const chunks = [];
  for await (const chunk of request) {
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

let provider;
const [tokenServer, issuer] = await listen(async (request, response) => {
  if (behaviour !== "replayed" || request.method !== "POST" || "x-again" in request.headers) {
    return provider.callback()(request, response);
  }
  // The same request twice: the second is the client's own.
  const form = await body(request);
  const headers = { "content-type": request.headers["content-type"], "x-again": "yes" };
  const ask = () => fetch(`${issuer}/token`, { method: "POST", headers, body: form });
  await ask();
  const second = await ask();
  response.writeHead(second.status, { "content-type": second.headers.get("content-type") });
  response.end(await second.text());
});
provider = new Provider(issuer, configuration());
provider.on("grant.success", (ctx) => say({ granted: ctx.body.scope, to: ctx.oidc.client.clientId }));
provider.on("grant.error", (_, error) =>
  say({ refused: error.error, why: `${error.error_detail ?? error.cause?.message ?? error.message}` }));
provider.on("server_error", (_, error) => say({ broken: `${error.stack}` }));

// What the token of a request covers; undefined: it has no valid one.
const files = new Map();
async function coveredBy(request) {
  const value = /^Bearer (.+)$/i.exec(request.headers.authorization ?? "")?.[1];
  const token = value && (await provider.ClientCredentials.find(value));
  if (!token?.isValid) {
    return undefined;
  }
  if (request.url.includes("/bulkfiles/")) {
    files.set(value, (files.get(value) ?? 0) + 1);
    if (behaviour === "revoked" && files.get(value) > 3 && files.size < 3) {
      await token.destroy();
      return undefined;
    }
  }
  return new Set(token.scope.split(" ").map((word) => word.slice("system/".length, -".rs".length)));
}

const { origin: behind } = new URL(upstream);
const [frontServer, front] = await listen(async (request, response) => {
  if (request.url === "/fhir/.well-known/smart-configuration") {
    response.writeHead(200, { "content-type": "application/json" });
    return response.end(JSON.stringify({
      issuer,
      token_endpoint: `${issuer}/token`,
      grant_types_supported: ["client_credentials"],
      token_endpoint_auth_signing_alg_values_supported: ["ES384", "RS384"],
      capabilities: ["client-confidential-asymmetric", "permission-v2"],
      token_endpoint_auth_methods_supported: ["private_key_jwt"],
      scopes_supported: scope.split(" "),
    }));
  }
  const types = request.url === "/fhir/metadata" ? new Set() : await coveredBy(request);
  if (types === undefined) {
    response.writeHead(401, { "www-authenticate": 'Bearer error="invalid_token"' });
    return response.end();
  }
  return forward(request, response, types);
});

async function forward(request, response, types) {
  const url = new URL(request.url, behind);
  const asked = url.searchParams.get("_type");
  if (asked) {
    // What the token does not cover is left out without a word.
    url.searchParams.set("_type", asked.split(",").filter((type) => types.has(type)).join(","));
  }
  const { host: _, connection: __, "content-length": ___, ...headers } = request.headers;
  const sent = await body(request);
  const answer = await fetch(url, {
    method: request.method,
    headers: { ...headers, "accept-encoding": "identity" },
    body: sent.length > 0 ? sent : undefined,
    redirect: "manual",
  });
  const received = { ...Object.fromEntries(answer.headers) };
  for (const name of ["connection", "content-length", "keep-alive", "transfer-encoding"]) {
    delete received[name];
  }
  const outside = (text) => text.replaceAll(behind, front);
  if (received["content-location"]) {
    received["content-location"] = outside(received["content-location"]);
  }
  const bytes = Buffer.from(await answer.arrayBuffer());
  response.writeHead(answer.status, received);
  if (request.url.includes("/bulkfiles/")) {
    return response.end(bytes);
  }
  const text = outside(bytes.toString());
  response.end(text.replace('"requiresAccessToken":false', '"requiresAccessToken":true'));
}

say({ issuer, fhir: `${front}/fhir` });
process.on("SIGTERM", () => {
  tokenServer.close();
  frontServer.close();
  process.exit(0);
});
