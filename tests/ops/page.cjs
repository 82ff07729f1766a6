// The test of the status page; page.sh says what it proves.
'use strict';

const assert = require('node:assert/strict');
const { spawn } = require('node:child_process');
const { once } = require('node:events');
const fs = require('node:fs');
const http = require('node:http');
const os = require('node:os');
const path = require('node:path');
const readline = require('node:readline');
const { chromium } = require('playwright-core');
const axe = require('axe-core');

const [program, pictures] = process.argv.slice(2);
const runs = Number(process.env.PAGE_RUNS ?? 3);
const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'fhir-sync-page-'));
const children = new Set();
const LIMIT_MS = 300_000;

const WIDTHS = [360, 768, 1280];
const SCHEMES = ['light', 'dark'];

function start(...words) {
  const child = spawn(program, words, { stdio: ['ignore', 'pipe', 'pipe'], cwd: folder });
  children.add(child);
  child.on('exit', () => children.delete(child));
  return child;
}

async function stop(child) {
  child.kill('SIGTERM');
  if (child.exitCode === null) await once(child, 'exit');
}

/** What `find` finds in the first line of a stream that has it. */
function line(stream, what, find) {
  return new Promise((resolve, reject) => {
    const limit = setTimeout(() => reject(new Error(`not within ${LIMIT_MS / 1000} s: ${what}`)), LIMIT_MS);
    const lines = readline.createInterface({ input: stream });
    lines.on('close', () => reject(new Error(`the program ended before: ${what}`)));
    lines.on('line', (text) => {
      const found = find(text);
      if (!found) return;
      clearTimeout(limit);
      resolve(found);
    });
  });
}

/** A server that works on every export for ever, and says how far it is. */
async function endlessServer() {
  const server = http.createServer((request, response) => {
    if (request.url.includes('$export')) {
      response.writeHead(202, { 'content-location': `http://127.0.0.1:${server.address().port}/job/1` }).end();
    } else if (request.url === '/job/1') {
      response.writeHead(202, { 'x-progress': '42%', 'retry-after': '1' }).end();
    } else {
      response.writeHead(404).end();
    }
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return server;
}

/** A daemon with two exports; returns its origin. */
async function daemon(name, server, schedule, maxAge) {
  const file = path.join(folder, `${name}.toml`);
  const place = path.join(folder, name);
  fs.writeFileSync(file, `
[server]
url = "${server}"
source = "demo"
poll = { min_interval = "10ms", max_interval = "50ms" }
outage_patience = "300ms"
http = { retry_min_wait = "10ms", retry_max_wait = "50ms" }
[tables]
root = "${place}/lake"
[state]
file = "${place}/state.json"
[health]
listen = "127.0.0.1:0"
max_age = "${maxAge}"
[log]
format = "json"
[[export]]
name = "clinical"
types = ["Patient", "Encounter", "Condition", "Observation", "MedicationRequest", "AllergyIntolerance"]
incremental = "${schedule}"
[[export]]
name = "claims"
types = ["Claim", "ExplanationOfBenefit"]
incremental = "${schedule}"
`);
  const child = start('run', '--config', file);
  const address = (text) => {
    const event = text.startsWith('{') ? JSON.parse(text) : {};
    return event.message === 'ready' && event.health;
  };
  return { child, origin: `http://${await line(child.stderr, 'ready', address)}` };
}

async function eventually(what, look) {
  const end = Date.now() + LIMIT_MS;
  while (Date.now() < end) {
    if (await look()) return;
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
  throw new Error(`not within ${LIMIT_MS / 1000} s: ${what}`);
}

const text = async (origin, place = '/') => (await fetch(origin + place)).text();

/** Looks at a page in all widths and both schemes. */
async function inspect(browser, name, origin) {
  const wrong = [];
  for (const colorScheme of SCHEMES) {
    for (const width of WIDTHS) {
      const context = await browser.newContext({ colorScheme, viewport: { width, height: 900 } });
      const page = await context.newPage();
      const where = `${name}, ${width} px, ${colorScheme}`;
      page.on('console', (message) => wrong.push(`${where}: the browser says ${message.type()}: ${message.text()}`));
      page.on('pageerror', (error) => wrong.push(`${where}: ${error}`));
      page.on('request', (request) => {
        if (!request.url().startsWith(origin)) wrong.push(`${where}: it asks for ${request.url()}`);
      });
      await page.goto(`${origin}/?refresh=off`, { waitUntil: 'networkidle' });
      for (const summary of await page.locator('summary').all()) await summary.click();
      const [wide, screen] = await page.evaluate('[document.documentElement.scrollWidth, window.innerWidth]');
      if (wide > screen) wrong.push(`${where}: it is ${wide} px wide`);
      await page.evaluate(axe.source);
      const { violations } = await page.evaluate('axe.run()');
      for (const { id, help, nodes } of violations) wrong.push(`${where}: ${id}, ${help}: ${nodes[0].html}`);
      if (pictures) {
        for (const summary of await page.locator('summary').all()) await summary.click();
        await page.screenshot({ path: path.join(pictures, `${name}-${width}-${colorScheme}.png`), fullPage: true });
      }
      await context.close();
    }
  }
  console.log(`${name}: ${wrong.length ? 'WRONG' : 'good'}`);
  return wrong;
}

async function main() {
  if (pictures) fs.mkdirSync(pictures, { recursive: true });
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: ['--no-sandbox'] });
  const wrong = [];

  const endless = await endlessServer();
  const loading = await daemon('loading', `http://127.0.0.1:${endless.address().port}/`, '0 * * * *', '2h');
  await eventually('the wait for the server', async () => (await text(loading.origin)).includes('waiting for the server'));
  assert.match(await text(loading.origin), /The first load is in progress/);
  wrong.push(...await inspect(browser, 'loading', loading.origin));
  await stop(loading.child);
  endless.close();

  const demo = start('demo', '--patients', '10', '--dir', path.join(folder, 'demo'), '--keep-serving');
  const server = await line(demo.stdout, 'the URL of the server', (text) => /runs at (\S+) until/.exec(text)?.[1]);
  const healthy = await daemon('healthy', server, '*/2 * * * * *', '2h');
  await eventually('enough runs', async () => ((await text(healthy.origin)).match(/role="rowheader"/g) ?? []).length >= 2 * runs + 8);
  assert.match(await text(healthy.origin), /All data are fresh/);
  wrong.push(...await inspect(browser, 'healthy', healthy.origin));
  await stop(healthy.child);

  const failing = await daemon('healthy', server, '*/2 * * * * *', '5s');
  demo.kill('SIGKILL');
  await eventually('old data', async () => (await text(failing.origin)).includes('are too old'));
  await eventually('failed runs', async () => (await text(failing.origin)).includes('runs in a row not complete'));
  wrong.push(...await inspect(browser, 'failing', failing.origin));
  await stop(failing.child);

  await browser.close();
  assert.deepEqual(wrong, []);
}

main()
  .catch((error) => {
    console.error(error);
    process.exitCode = 1;
  })
  .finally(() => {
    children.forEach((child) => child.kill('SIGKILL'));
    fs.rmSync(folder, { recursive: true, force: true });
  });
