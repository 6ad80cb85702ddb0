# An app on Perl's LWP, whose code asks for the proxy of the environment. Of whom to trust it says
# nothing.
use strict;
use warnings;
use JSON::PP;
use LWP::UserAgent;

my $json   = JSON::PP->new->ascii->canonical;
my $agent  = LWP::UserAgent->new(env_proxy => 1, timeout => 20);
my $asked  = { model => 'gpt-4o-mini', messages => [{ role => 'user', content => 'hi' }] };
my $answer = $agent->post(
    'https://api.openai.com/v1/chat/completions',
    'Content-Type' => 'application/json',
    Authorization  => 'Bearer ' . ($ENV{OPENAI_API_KEY} // ''),
    Content        => $json->encode($asked),
);
my $reached = !defined $answer->header('Client-Warning');    # else LWP itself speaks
my $ok      = $answer->code == 200;
my $found   = $ok ? decode_json($answer->content) : {};
print $json->encode({
    ok     => $ok ? JSON::PP::true : JSON::PP::false,
    status => $reached ? $answer->code + 0 : undef,
    text   => $ok ? $found->{choices}[0]{message}{content} : undef,
    error  => $ok ? undef : $answer->decoded_content,
}), "\n";
exit($ok ? 0 : 1);
