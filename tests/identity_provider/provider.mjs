// An OpenID provider for tests: client credentials, JWT access tokens for the resource that is asked for.
// Run as `node provider.mjs PORT JWKS_FILE MODULES`; one client per signing algorithm, named like `worker-RS256`.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const [port, jwksFile, modules] = process.argv.slice(2);
const require = createRequire(`${modules}/`);
const { default: Provider } = await import(pathToFileURL(require.resolve('oidc-provider')).href);

const SCOPES = 'support:predict support:feedback support:on_behalf finance:predict';
const ALGORITHMS = ['RS256', 'ES256', 'EdDSA', 'PS256'];

const provider = new Provider(`http://127.0.0.1:${port}`, {
  jwks: JSON.parse(readFileSync(jwksFile, 'utf8')),
  enabledJWA: { idTokenSigningAlgValues: ALGORITHMS },
  clients: ALGORITHMS.map((alg) => ({
    client_id: `worker-${alg}`, client_secret: 'only-for-this-machine', grant_types: ['client_credentials'],
    redirect_uris: [], response_types: [], token_endpoint_auth_method: 'client_secret_basic',
    scope: SCOPES,
  })),
  scopes: SCOPES.split(' '),
  extraTokenClaims: () => ({ tenant: 'acme' }),
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: (ctx, resource, client) => ({
        scope: SCOPES, audience: resource, accessTokenFormat: 'jwt', accessTokenTTL: 60,
        jwt: { sign: { alg: client.clientId.replace('worker-', '') } },
      }),
    },
  },
});
provider.listen(Number(port), '127.0.0.1', () => console.log('ready'));
