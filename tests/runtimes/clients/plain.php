<?php
// An app on PHP's curl extension. It says nothing of whom to trust.
$asked = ['model' => 'gpt-4o-mini', 'messages' => [['role' => 'user', 'content' => 'hi']]];
$handle = curl_init('https://api.openai.com/v1/chat/completions');
curl_setopt_array($handle, [
    CURLOPT_RETURNTRANSFER => true,
    CURLOPT_TIMEOUT => 20,
    CURLOPT_POSTFIELDS => json_encode($asked),
    CURLOPT_HTTPHEADER => [
        'Content-Type: application/json',
        'Authorization: Bearer ' . getenv('OPENAI_API_KEY'),
    ],
]);
$body = curl_exec($handle);
$status = curl_getinfo($handle, CURLINFO_RESPONSE_CODE) ?: null;
$ok = $body !== false && $status === 200;
echo json_encode([
    'ok' => $ok,
    'status' => $status,
    'text' => $ok ? json_decode($body, true)['choices'][0]['message']['content'] : null,
    'error' => $ok ? null : ($body === false ? curl_error($handle) : $body),
]), "\n";
exit($ok ? 0 : 1);
