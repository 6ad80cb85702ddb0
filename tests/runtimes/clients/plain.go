// An app on Go's net/http. It says nothing of whom to trust.
package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"time"
)

type outcome struct {
	OK     bool    `json:"ok"`
	Status *int    `json:"status"`
	Text   *string `json:"text"`
	Error  *string `json:"error"`
}

type completion struct {
	Choices []struct {
		Message struct {
			Content string `json:"content"`
		} `json:"message"`
	} `json:"choices"`
}

const asked = `{"model":"gpt-4o-mini","messages":[{"role":"user","content":"hi"}]}`

func post() (int, []byte, error) {
	url := "https://api.openai.com/v1/chat/completions"
	request, err := http.NewRequest("POST", url, bytes.NewBufferString(asked))
	if err != nil {
		return 0, nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Authorization", "Bearer "+os.Getenv("OPENAI_API_KEY"))
	client := http.Client{Timeout: 20 * time.Second}
	answer, err := client.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	return answer.StatusCode, body, err
}

func call() outcome {
	status, body, err := post()
	if err != nil {
		told := err.Error()
		return outcome{Error: &told}
	}
	var found completion
	if status != 200 || json.Unmarshal(body, &found) != nil || len(found.Choices) == 0 {
		told := string(body)
		return outcome{Status: &status, Error: &told}
	}
	return outcome{OK: true, Status: &status, Text: &found.Choices[0].Message.Content}
}

func main() {
	found := call()
	json.NewEncoder(os.Stdout).Encode(found)
	if !found.OK {
		os.Exit(1)
	}
}
